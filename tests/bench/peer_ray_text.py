"""Peer `ray-text`: embeddings as Ray Data's documentation has it, with sentence-transformers.

read_parquet, map_batches over a pool of actors, write_parquet. An actor a core, one thread each;
blocks of rows are large enough that `encode` can sort them by length.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from peer_model import CORES, steady_rate
from peer_texts import ST_BATCH, load_st

_BLOCK_ROWS = 1_024


def ray_text(texts: str, model: str, weights: str, out: str) -> dict[str, Any]:
    import pyarrow.parquet as pq
    import ray as ray_

    class Embedder:
        def __init__(self) -> None:
            self.encoder = load_st(model, 1)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            passages = batch["text"].tolist()
            found = self.encoder.encode(passages, batch_size=ST_BATCH, show_progress_bar=False)
            at = np.full(len(passages), time.time())
            return {"id": batch["id"], "embedding": found, "at": at}

    # One slot more than cores: reading and writing take next to nothing, and need a slot.
    ray_.init(num_cpus=CORES + 1, logging_level="ERROR", log_to_driver=False)
    ray_.data.DataContext.get_current().enable_progress_bars = False
    (
        ray_.data.read_parquet(texts)
        .map_batches(Embedder, batch_size=_BLOCK_ROWS, concurrency=CORES)
        .write_parquet(out)
    )
    ends = pq.read_table(out, columns=["at"]).column("at").to_pylist()
    return {"rows": len(ends), "steady": steady_rate(ends)}
