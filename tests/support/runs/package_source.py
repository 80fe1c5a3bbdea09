"""The package's files as syntax trees, and what they import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
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


def for_types_only(tree: ast.AST) -> set[int]:
    """The nodes under `if TYPE_CHECKING:`, which never run."""
    return {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }


def imported(tree: ast.AST) -> set[str]:
    """Full names of what is imported anywhere, also inside functions."""
    skipped = for_types_only(tree)
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
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
