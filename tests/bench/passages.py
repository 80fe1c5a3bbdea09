"""Passages of English: docstrings of the standard library, in a seeded order."""

from __future__ import annotations

import ast
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

MIN_WORDS, MAX_WORDS = 3, 500
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def passages(num_rows: int, seed: int = 1) -> list[str]:
    """Return so many passages of 3 to 500 words.

    There are some eight thousand docstrings; what is missing are two of them, one after the other.
    Another Python has other docstrings.
    """
    library, chosen = Path(sysconfig.get_paths()["stdlib"]), random.Random(seed)
    files = (path for path in sorted(library.rglob("*.py")) if _is_documented(path))
    single = list(dict.fromkeys(text for path in files for text in _texts(path)))
    chosen.shuffle(single)
    texts = single[:num_rows]
    while len(texts) < num_rows:
        joined = " ".join(chosen.sample(single, 2))
        if len(joined.split()) <= MAX_WORDS:
            texts.append(joined)
    chosen.shuffle(texts)
    return texts


def _is_documented(path: Path) -> bool:
    return not {"site-packages", "dist-packages", "test", "tests"} & set(path.parts)


def _texts(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return  # files of the library that test such errors
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED):
            text = " ".join((ast.get_docstring(node) or "").split())
            if MIN_WORDS <= len(text.split()) <= MAX_WORDS:
                yield text
