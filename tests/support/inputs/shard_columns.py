"""Read columns of Parquet shards as a run does, without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.slices import pack, unpack
from pipeline.job.features import FeatureColumn
from pipeline.job.source import Source
from pipeline.planning.slicing import SliceSizes, make_units
from pipeline.sources.listing.inputs import Inputs, list_inputs
from pipeline.sources.reader import read_slices
from pipeline.sources.rows import Reader
from pipeline.storage.store import Store


def source_of(folder: Path, **fields: Any) -> Source:
    return Source(uri=str(folder), format="parquet", **fields)


def features_of(*entries: str | dict[str, Any]) -> tuple[str | FeatureColumn, ...]:
    """Entries of `source.features` as a job file has them."""
    return tuple(
        entry if isinstance(entry, str) else FeatureColumn.model_validate_json(json.dumps(entry))
        for entry in entries
    )


def write_columns(folder: Path, **columns: Any) -> None:
    """Write one shard."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "a.parquet")


def read_features(folder: Path, *entries: str | dict[str, Any], **fields: Any) -> pa.Table:
    source = source_of(folder, features=features_of(*entries), **fields)
    return pa.concat_tables(read_all(list_inputs(source, max_extent_rows=9), source, 9))


def read_all(inputs: Inputs, source: Source, slice_rows: int = 2, **reader: Any) -> list[pa.Table]:
    """The rows in slices that went through Ray's form."""
    how = Reader(Store(inputs.root), source, inputs.pass_through, inputs.fields, **reader)
    return [
        unpack(pack(key, counters, rows))[0][2]
        for unit in make_units(inputs.extents, SliceSizes(slice_rows))
        for key, counters, rows in read_slices(how, unit, {key.start for key in unit.slices()})
    ]


def text(*values: bytes | None) -> pa.Array:
    """A text column that may hold what is no UTF-8."""
    made = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(values), made.buffers())
