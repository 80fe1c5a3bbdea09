"""What the peers over texts share: reading, writing, and sentence-transformers as it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ST_BATCH = 32
"""What sentence-transformers takes by default."""
EMBEDDINGS = "embeddings.parquet"
"""What a peer writes, below its folder: `id` and `embedding`."""


def read_texts(folder: str) -> tuple[list[int], list[str]]:
    """Return the columns `id` and `text` of all files below a folder."""
    rows = pq.read_table(folder, columns=["id", "text"])
    return rows.column("id").to_pylist(), rows.column("text").to_pylist()


def load_st(model: str, num_threads: int) -> Any:
    """Load a sentence-transformers directory on the CPU, without a network."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(num_threads)
    return SentenceTransformer(model, device="cpu", local_files_only=True)


def write_embeddings(folder: Path, ids: list[int], embeddings: np.ndarray) -> None:
    """Write (N, D) embeddings as Parquet, one list of float32 a row."""
    values = pa.array(embeddings.astype(np.float32, copy=False).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(values, embeddings.shape[1])
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": pa.array(ids), "embedding": column}), folder / EMBEDDINGS)
