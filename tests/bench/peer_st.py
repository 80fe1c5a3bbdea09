"""Peers `st-1`, `st` and `st-pool`: `encode` of sentence-transformers.

`st-1` has one thread, `st` one a core; both are one process and sort all texts by length. `st-pool`
is its pool of processes, one a core with one thread each, which sort their chunks.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from peer_model import CORES
from peer_texts import ST_BATCH, load_st, read_texts, write_embeddings


def st_1(texts: str, model: str, weights: str, out: str) -> dict[str, Any]:
    return _in_one_process(texts, model, out, 1)


def st(texts: str, model: str, weights: str, out: str) -> dict[str, Any]:
    return _in_one_process(texts, model, out, CORES)


def _in_one_process(texts: str, model: str, out: str, num_threads: int) -> dict[str, Any]:
    encoder = load_st(model, num_threads)
    ids, passages = read_texts(texts)
    encoder.encode(passages[:ST_BATCH], batch_size=ST_BATCH)
    started = time.perf_counter()
    found = encoder.encode(passages, batch_size=ST_BATCH, show_progress_bar=False)
    took_s = time.perf_counter() - started
    write_embeddings(Path(out), ids, found)
    return {"rows": len(ids), "steady": len(ids) / took_s}


def st_pool(texts: str, model: str, weights: str, out: str) -> dict[str, Any]:
    os.environ["OMP_NUM_THREADS"] = "1"  # of the pool's processes
    encoder = load_st(model, 1)
    ids, passages = read_texts(texts)
    pool = encoder.start_multi_process_pool(["cpu"] * CORES)
    try:
        warm_up = passages[: ST_BATCH * CORES]
        encoder.encode(warm_up, pool=pool, batch_size=ST_BATCH, chunk_size=ST_BATCH)
        started = time.perf_counter()
        found = encoder.encode(passages, pool=pool, batch_size=ST_BATCH)
        took_s = time.perf_counter() - started
    finally:
        encoder.stop_multi_process_pool(pool)
    write_embeddings(Path(out), ids, found)
    return {"rows": len(ids), "steady": len(ids) / took_s}
