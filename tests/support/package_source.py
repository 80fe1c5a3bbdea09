"""The package's files as syntax trees, and what they import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "pipeline"
FILES = sorted(PACKAGE.glob("*.py"))
NAMES = [path.stem for path in FILES]


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in FILES:
        yield path.stem, ast.parse(path.read_text(), str(path))


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
            # `from pipeline import plan` names a module, `from pipeline.plan import Plan` does not.
            bare = prefix == "pipeline" or not prefix.strip(".")
            names.update(f"{prefix}.{alias.name}" for alias in node.names if bare)
            names.update([] if bare else [prefix])
    return names


def own_imports(tree: ast.AST) -> set[str]:
    """Names of the files of the package that are imported."""
    return {name.split(".")[1] for name in imported(tree) if name.startswith("pipeline.")}
