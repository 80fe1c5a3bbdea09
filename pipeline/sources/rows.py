"""What the readers of all formats share: the `Reader`, and tables of rows in `source_schema`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa

from pipeline.core.arrays import Numbers
from pipeline.core.errors import InfraError
from pipeline.core.failures import Failure, failure_columns
from pipeline.core.schema import ROW_ID, URI, source_schema
from pipeline.core.user_code.own_code import ContractError
from pipeline.job.source import Source
from pipeline.sources.extents import Extent
from pipeline.storage.store import Store

T = TypeVar("T")


@dataclass(frozen=True)
class Reader:
    """Everything needed to read any unit of one job; can be pickled."""

    store: Store
    source: Source
    pass_through: pa.Schema
    fields: pa.Schema
    """The columns of a row's input, with the types of the shards."""
    folders: tuple[str, ...] = ()
    """Pass-through columns whose values become folders (`sink.partition_columns`)."""
    row_timeout_s: float = 120.0
    """How long a row may take, the fetching of its URI among others."""

    @property
    def schema(self) -> pa.Schema:
        """Return the schema of the tables that `read_slices` yields."""
        return source_schema(list(self.pass_through), self.fields)


def make_rows(
    reader: Reader,
    row_ids: Sequence[str] | pa.Array,
    uris: Sequence[str] | pa.Array,
    inputs: Mapping[str, Sequence[bytes | None] | pa.Array],
    failures: Sequence[Failure | None],
    pass_through: dict[str, pa.Array] | None = None,
) -> pa.Table:
    """Make a table of `reader.schema`.

    Args:
        row_ids: (N,).
        uris: (N,), as they are published.
        inputs: The columns of `reader.fields`, each (N,).
        failures: (N,); None for a row that was read.
        pass_through: The columns of `reader.pass_through`, each (N,); None: all null.
    """
    columns = {ROW_ID: _texts(row_ids), URI: _texts(uris)}
    _require_contract(reader.fields, inputs, len(columns[ROW_ID]))
    for field in reader.pass_through:
        columns[field.name] = (
            pa.nulls(len(uris), field.type) if pass_through is None else pass_through[field.name]
        )
    for name, values in inputs.items():
        columns[name] = values if isinstance(values, pa.Array) else binary_array(values)
    columns.update(failure_columns(failures))
    return pa.table(columns, schema=reader.schema)


def _require_contract(
    fields: pa.Schema, inputs: Mapping[str, Sequence[bytes | None] | pa.Array], num_rows: int
) -> None:
    """Check what a format gives as the input of its rows, which one of another package may mistake.

    Raises:
        ContractError: Says what was expected.
    """
    for field in fields:
        if field.name not in inputs:
            named = ", ".join(sorted(inputs)) or "none"
            raise ContractError(f"column {field.name!r} is missing, there are {named}")
        values = inputs[field.name]
        if len(values) != num_rows:
            raise ContractError(f"{field.name} has {len(values)} values for {num_rows} row ids")
        if isinstance(values, pa.Array):
            continue
        if not (pa.types.is_large_binary(field.type) or pa.types.is_large_string(field.type)):
            raise ContractError(f"{field.name} must be a pyarrow array of {field.type}")
        wrong = next((v for v in values if not isinstance(v, bytes | None)), None)
        if wrong is not None:
            is_text = pa.types.is_large_string(field.type)
            what = "texts must be bytes (UTF-8)" if is_text else "encoded values must be bytes"
            raise ContractError(f"{what}, {field.name} has a {type(wrong).__name__}")


def _texts(values: Sequence[str] | pa.Array) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, pa.string())


def chosen(values: Sequence[T], rows: slice | Numbers) -> Sequence[T]:
    """Return some values, in order."""
    return values[rows] if isinstance(rows, slice) else [values[row] for row in rows.tolist()]


def binary_array(values: Sequence[bytes | None]) -> pa.Array:
    """Make a large_binary array (N,); copies each value once, unlike Arrow's growing builder."""
    lengths = np.fromiter((len(value or b"") for value in values), np.int64, len(values))
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    is_there = np.fromiter((value is not None for value in values), np.bool_, len(values))
    validity = None if is_there.all() else np.packbits(is_there, bitorder="little")
    data = b"".join(value for value in values if value is not None)
    buffers = [
        None if validity is None else pa.py_buffer(validity),
        *map(pa.py_buffer, (offsets, data)),
    ]
    return pa.Array.from_buffers(pa.large_binary(), len(values), buffers)


def require_unchanged(store: Store, extent: Extent) -> None:
    """Check that a shard has the planned size and version.

    Raises:
        FileNotFoundError: The shard no longer exists.
        InfraError: Its size or version differs; or the ctime of a local file, which is what tells
            of new content if size and mtime were put back. After a chmod a new run goes on.
    """
    file = store.stat(extent.path)
    if file is None:
        raise FileNotFoundError(extent.path)
    if (file.size_bytes, file.version) != (extent.size_bytes, extent.version):
        raise changed(store, extent)
    if extent.ctime_ns not in (0, file.ctime_ns):
        raise changed(store, extent)


def changed(store: Store, extent: Extent) -> InfraError:
    """Return the error of a shard that changed since it was planned."""
    return InfraError(
        f"{store.url(extent.path)}: changed since it was planned; run again to plan it anew"
    )
