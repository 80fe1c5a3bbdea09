"""Peers over texts: sentence-transformers by itself, in Ray Data, and Daft; all write Parquet.

Each returns the number of rows, and the seconds of the work without loading.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from peers_photos import CORES, Done, written

ST_BATCH = 32
"""What sentence-transformers takes by default."""
_BLOCK_ROWS = 1_024
"""So many that `encode` can sort them by length."""


def load_st(model: str, num_threads: int) -> Any:
    """Load a sentence-transformers directory on the CPU, without a network."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(num_threads)
    return SentenceTransformer(model, device="cpu", local_files_only=True)


def st_1(texts: str, model: str, weights: str, out: str) -> Done:
    """Encode in one process with one thread; it sorts all texts by length."""
    return _encoded(texts, out, load_st(model, 1).encode)


def st(texts: str, model: str, weights: str, out: str) -> Done:
    """The same with a thread a core."""
    return _encoded(texts, out, load_st(model, CORES).encode)


def st_pool(texts: str, model: str, weights: str, out: str) -> Done:
    """Encode in its pool of processes, one a core with one thread each, which sort their chunks."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the pool's processes
    encoder = load_st(model, 1)
    pool = encoder.start_multi_process_pool(["cpu"] * CORES)
    try:
        return _encoded(
            texts, out, lambda *given, **more: encoder.encode(*given, pool=pool, **more)
        )
    finally:
        encoder.stop_multi_process_pool(pool)


def _encoded(texts: str, out: str, encode: Callable[..., np.ndarray]) -> Done:
    rows = pq.read_table(texts, columns=["id", "text"])
    passages = rows.column("text").to_pylist()
    encode(passages[: ST_BATCH * CORES], batch_size=ST_BATCH)
    started = time.perf_counter()
    vectors = encode(passages, batch_size=ST_BATCH, show_progress_bar=False)
    values = pa.array(vectors.astype(np.float32, copy=False).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])
    Path(out).mkdir(parents=True)
    pq.write_table(rows.select(["id"]).append_column("embedding", column), f"{out}/0.parquet")
    return len(vectors), time.perf_counter() - started


def ray_text(texts: str, model: str, weights: str, out: str) -> Done:
    """Ray Data's read_parquet, map_batches over a pool of actors, write_parquet: an actor a core,
    with one thread each.
    """
    import ray

    class Embedder:
        def __init__(self) -> None:
            self.encoder = load_st(model, 1)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            passages = batch["text"].tolist()
            vectors = self.encoder.encode(passages, batch_size=ST_BATCH, show_progress_bar=False)
            return {"id": batch["id"], "embedding": vectors}

    # One slot more than cores: reading and writing take next to nothing, and need a slot.
    ray.init(num_cpus=CORES + 1, logging_level="ERROR", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.read_parquet(texts)
    rows = rows.map_batches(Embedder, batch_size=_BLOCK_ROWS, concurrency=CORES)
    return written(rows.write_parquet, out)


def daft_text(texts: str, model: str, weights: str, out: str) -> Done:
    """Daft's `embed_text` with its provider `transformers`, which loads the directory with
    sentence-transformers, then write_parquet; Daft chooses processes and batches.
    """
    import daft
    from daft.functions import embed_text

    frame = daft.read_parquet(f"{texts}/*.parquet")
    embedding = embed_text(frame["text"], provider="transformers", model=model)
    frame = frame.with_column("embedding", embedding)
    return written(frame.select("id", "embedding").write_parquet, out)
