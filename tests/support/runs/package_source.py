"""The files of the package as syntax trees, and their imports."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from support.runs.checkout import ROOT

PACKAGE = ROOT / "pipeline"
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """Name a file as an import does, without the package: `plan.slicing`; a folder's `plan`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


NAMES = [name_of(path) for path in FILES]


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in FILES:
        yield name_of(path), ast.parse(path.read_text(), str(path))


def is_for_types_only(node: ast.AST) -> bool:
    """Whether it is `if TYPE_CHECKING:`, whose body never runs."""
    test = node.test if isinstance(node, ast.If) else None
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
    return name == "TYPE_CHECKING"


def running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a tree but the bodies of `if TYPE_CHECKING:`."""
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        below = node.orelse if is_for_types_only(node) else ast.iter_child_nodes(node)
        todo += below


def imported(nodes: Iterable[ast.AST]) -> set[str]:
    """Full names of what is imported anywhere among them, also inside functions."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            # `from pipeline import plan` names a folder, `from pipeline.planning.plan
            # import Plan` does not.
            bare = prefix == "pipeline" or not prefix.strip(".")
            names.update([] if bare else [prefix])
            # What is imported from a module may be a module itself.
            names.update(f"{prefix}.{alias.name}" for alias in node.names)
    return names


def folders_of(names: set[str]) -> set[str]:
    """The folders of the package, or files directly in it, that these names are imported from."""
    return {name.split(".")[1] for name in names if name.startswith("pipeline.")}
