"""Write JSON lines shards, and read them in slices without Ray."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.core.slices import SliceKey, pack, unpack
from pipeline.job.source import Source
from pipeline.sources.listing.inputs import list_inputs
from pipeline.sources.reader import read_slices
from pipeline.sources.rows import Reader
from pipeline.sources.units import ALL_ROWS, RowFilter, UncountedPlan, Unit
from pipeline.storage.store import Store

Slices = list[tuple[SliceKey, pa.Table]]


def zstd(data: bytes) -> bytes:
    target = pa.BufferOutputStream()
    with pa.CompressedOutputStream(target, "zstd") as stream:
        stream.write(data)
    return target.getvalue().to_pybytes()


CODECS: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": lambda data: data,
    ".jsonl.gz": gzip.compress,
    ".jsonl.zst": zstd,
}
"""Suffix -> how a shard of that name is written."""


def lines(*values: Any) -> bytes:
    """Write objects as JSON; bytes stay as they are."""
    return b"".join(
        value if isinstance(value, bytes) else json.dumps(value).encode() + b"\n"
        for value in values
    )


def source_of(uri: Path, **fields: Any) -> Source:
    return Source(uri=str(uri), format="jsonl", **fields)


def read(
    source: Source,
    slice_rows: int = 2**20,
    *,
    slice_bytes: int = 2**30,
    done: Sequence[SliceKey] = (),
    max_rows: int | None = None,
    rows: RowFilter = ALL_ROWS,
) -> Slices:
    """Read the shards of a source as one unit, each slice through Ray's form."""
    inputs = list_inputs(source, max_extent_rows=4)
    reader = Reader(Store(inputs.root), source, inputs.pass_through, inputs.fields)
    cut = UncountedPlan(slice_rows, slice_bytes, max_rows, tuple(done), rows)
    slices = []
    for key, counters, table in read_slices(reader, Unit(0, inputs.extents, (), cut), frozenset()):
        assert table.schema.equals(reader.schema)
        table.validate(full=True)
        if table.num_rows:
            table = unpack(pack(key, counters, table))[0][2]
        slices.append((key, table))
    return slices


def read_all(source: Source, **options: Any) -> pa.Table:
    return pa.concat_tables([table for _, table in read(source, **options)])
