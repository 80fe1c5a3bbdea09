"""Passages of English for measurements: docstrings of the standard library, in a seeded order."""

from __future__ import annotations

import ast
import random
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

MIN_WORDS, MAX_WORDS = 3, 500
_GROUP_ROWS = 2_000


def passages(num_rows: int, seed: int = 1) -> list[str]:
    """Return so many different passages of 3 to 500 words.

    There are some eight thousand docstrings; what is missing are two of them, one after the other.
    Another Python has other docstrings.
    """
    found = list(docstrings())
    chosen = random.Random(seed)
    chosen.shuffle(found)
    known = set(found)
    single = list(found)
    while len(found) < num_rows:
        joined = " ".join(chosen.sample(single, 2))
        if joined not in known and len(joined.split()) <= MAX_WORDS:
            known.add(joined)
            found.append(joined)
    found = found[:num_rows]
    chosen.shuffle(found)
    return found


@cache
def docstrings() -> tuple[str, ...]:
    """Return the docstrings of 3 to 500 words of modules, classes and functions, each once."""
    library = Path(sysconfig.get_paths()["stdlib"])
    return tuple(dict.fromkeys(text for path in _sources(library) for text in _texts(path)))


def _sources(library: Path) -> Iterator[Path]:
    for path in sorted(library.rglob("*.py")):
        if not {"site-packages", "dist-packages", "test", "tests"} & set(path.parts):
            yield path


def _texts(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return  # files of the library that test such errors
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        text = (
            " ".join((ast.get_docstring(node) or "").split())
            if isinstance(node, documented)
            else ""
        )
        if MIN_WORDS <= len(text.split()) <= MAX_WORDS:
            yield text


def write_passages(path: Path, texts: list[str | None]) -> None:
    """Write texts to a Parquet file with the columns `id` (int64) and `text`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = pa.table({"id": pa.array(range(len(texts))), "text": pa.array(texts, pa.large_string())})
    pq.write_table(rows, path, row_group_size=_GROUP_ROWS)
