"""The predictions of a directory of texts by its own library: alone, unpadded, by its own ways."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.core.schema import EMBEDDING, LABEL, SCORE
from pipeline.models.directories.facts import DirectoryFacts


def text_predictions(
    path: Path, facts: DirectoryFacts, task: str, rows: Sequence[Sequence[str]]
) -> pa.Table | None:
    """Return columns of a task for some texts, as golden rows have them.

    Args:
        path: The directory.
        facts: Of it.
        task: A task that it serves.
        rows: Texts, or pairs of texts.

    Returns:
        A row for each; None: the library has no way of its own to this task.
    """
    if task == "classify":
        best = [entries[0] for entries in _classified(path, rows)]
        return pa.table({name: [entry[name] for entry in best] for name in (LABEL, SCORE)})
    if task == "embed" and facts.format_name == "sentence_transformers":
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(path), device="cpu", local_files_only=True)
        vectors = [model.encode(text).tolist() for (text,) in rows]
        width = len(vectors[0])
        return pa.table({EMBEDDING: pa.array(vectors, pa.list_(pa.float32(), width))})
    return None


def _classified(path: Path, rows: Sequence[Sequence[str]]) -> list[list[dict[str, Any]]]:
    """Return label and score of each class, the best first."""
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(path), device="cpu", top_k=None)
    names = ("text", "text_pair")
    return [classify(dict(zip(names, row, strict=False)), truncation=True) for row in rows]
