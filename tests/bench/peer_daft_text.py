"""Peer `daft-text`: Daft's `embed_text` with its provider `transformers`, then write_parquet.

The provider loads the directory with sentence-transformers; Daft chooses processes and batches.
"""

from __future__ import annotations

import time
from typing import Any

from peer_model import steady_rate


def daft_text(texts: str, model: str, weights: str, out: str) -> dict[str, Any]:
    import daft as daft_
    import pyarrow.parquet as pq
    from daft.functions import embed_text

    @daft_.func.batch(return_dtype=daft_.DataType.float64())
    def stamp(embeddings: Any) -> Any:
        return [time.time()] * len(embeddings)

    frame = daft_.read_parquet(f"{texts}/*.parquet")
    found = embed_text(frame["text"], provider="transformers", model=model)
    frame = frame.with_column("embedding", found)
    frame = frame.with_column("at", stamp(frame["embedding"]))
    frame.select("id", "embedding", "at").write_parquet(out)
    ends = pq.read_table(out, columns=["at"]).column("at").to_pylist()
    return {"rows": len(ends), "steady": steady_rate(ends)}
