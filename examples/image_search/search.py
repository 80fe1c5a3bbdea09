"""Find photos by words: `search.py OUTPUT MODEL WORDS...`, after the job has published vectors."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import pipeline


def vectors(output: str) -> tuple[list[str], np.ndarray]:
    """Return the ids of all rows, and their vectors (N, D) of length 1."""
    rows = pipeline.open_output(output).latest.predictions(["row_id", "embedding"]).to_table()
    found = np.stack(rows["embedding"].to_numpy())
    return rows["row_id"].to_pylist(), found / np.linalg.norm(found, axis=1, keepdims=True)


def search(output: str, model: str, words: list[str], number: int = 3) -> None:
    """Print the photos nearest to each of the texts, by the cosines of vectors of one model."""
    photos, seen = vectors(output)
    with tempfile.TemporaryDirectory() as scratch:
        asked = Path(scratch) / "words.parquet"
        pq.write_table(pa.table({"text": words}), asked)
        pipeline.predict(asked, model=model, to=f"{scratch}/vectors")
        _, meant = vectors(f"{scratch}/vectors")
    for text, cosines in zip(words, meant @ seen.T, strict=True):
        for index in np.argsort(-cosines)[:number]:
            print(f"{text}\t{cosines[index]:.3f}\t{photos[index]}")


if __name__ == "__main__":
    search(sys.argv[1], sys.argv[2], sys.argv[3:])
