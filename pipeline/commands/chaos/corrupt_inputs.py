"""Spoil copies of inputs by a seed, so that it is known which rows must end in quarantine."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.job.source import Source

_FLIPPED_BYTES = 16
_TEXT = b"Not found: the upstream job wrote this page in place of a file.\n"
_NOT_UTF8, _NOT_BASE64 = b"\xff\xfe not UTF-8", b"*** not base64 ***"
MISSING_URI = "chaos-missing.jpg"

_IMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 3],
    "zeros": lambda data: bytes(len(data)),
    "flipped": lambda data: (
        bytes(byte ^ 0xFF for byte in data[:_FLIPPED_BYTES]) + data[_FLIPPED_BYTES:]
    ),
    "text": lambda _: _TEXT,
    "empty": lambda _: b"",
}
_LINES = {
    "text": _TEXT,
    "truncated": b'{"truncated": "in a te\n',
    "list": b'["no object"]\n',
    "bytes": b'{"bytes": "\xff"}\n',
    "null": b"{}\n",
}
_SHARDS: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "text": lambda _: _TEXT,
    "empty": lambda _: b"",
}


def spoil_images(images: Sequence[bytes], number: int, seed: int) -> list[tuple[str, int, bytes]]:
    """Return spoilt copies of images: what was done, to which of them, and the bytes."""
    whole = [index for index, data in enumerate(images) if data]
    if not whole:
        return []
    dice = random.Random(seed)  # noqa: S311  # hides nothing
    kinds = [list(_IMAGES)[index % len(_IMAGES)] for index in range(number)]
    picked = [dice.choice(whole) for _ in kinds]
    return [(kind, at, _IMAGES[kind](images[at])) for kind, at in zip(kinds, picked, strict=True)]


def spoil_shards(data: bytes) -> dict[str, bytes]:
    """Return spoilt copies of a Parquet file or a tar, none of which is one."""
    return {kind: spoil(data) for kind, spoil in _SHARDS.items()}


def spoil_lines(number: int) -> list[tuple[str, bytes]]:
    """Return lines of which no job can predict one: what each is, and the line."""
    kinds = list(_LINES)
    return [(kind, _LINES[kind]) for kind in (kinds[i % len(kinds)] for i in range(number))]


def spoil_rows(source: Source, table: pa.Table, number: int, seed: int) -> pa.Table | None:
    """Return copies of rows of a shard, each with an input that cannot be predicted and a new id.

    None if no such input is known: of features only nulls are, if the job quarantines them. Of
    several inputs it is the first one.
    """
    source = next(iter(source.parts.values()))
    kind, [name, *_] = source.input_columns
    if not {name, source.id_column or name} <= {*table.column_names}:
        return None  # inside other columns
    column = table.column(name).combine_chunks()
    rows: pa.Table | None = table.slice(0, number)
    if kind == "uri":
        rows = with_texts(table.slice(0, number), name, [MISSING_URI] * number)
    elif kind == "text":
        has_nulls = table.schema.field(name).nullable
        values = [None if has_nulls and row % 2 else _NOT_UTF8 for row in range(number)]
        rows = _with_column(table.slice(0, number), name, _raw(values, column.type))
    elif kind == "image" and source.image_encoding == "base64":
        rows = _with_column(table.slice(0, number), name, _raw([_NOT_BASE64] * number, column.type))
    elif kind == "features":
        is_known = source.null_features == "quarantine" and table.schema.field(name).nullable
        nulls = pa.nulls(number, column.type) if is_known else None
        rows = _with_column(table.slice(0, number), name, nulls)
    else:
        spoilt = spoil_images(_images_of(column), number, seed)
        picked = pa.array([at for _, at, _ in spoilt], pa.int64())
        images = _with_images(column.take(picked), [data for _, _, data in spoilt])
        rows = _with_column(table.take(picked), name, images)
    return None if rows is None else _with_new_ids(source.id_column, rows, table)


def with_texts(table: pa.Table, name: str, values: Sequence[str | None]) -> pa.Table | None:
    """Return a table with other texts in a column; None if it holds no texts."""
    kind = table.schema.field(name).type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not is_text and not pa.types.is_dictionary(kind):
        return None
    return _with_column(table, name, pa.array(values, pa.string()).cast(kind))


def _raw(values: Sequence[bytes | None], kind: pa.DataType) -> pa.Array | None:
    """Return an array of bytes as text or binary; None if Arrow cannot make that type of it."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        plain = pa.binary() if pa.types.is_string(kind) else pa.large_binary()
        return pa.Array.from_buffers(kind, len(values), pa.array(values, plain).buffers())
    is_plain = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return pa.array(values, kind) if is_plain else None


def _with_column(table: pa.Table, name: str, values: pa.Array | None) -> pa.Table | None:
    if values is None or not table.num_rows:
        return None
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(index), values)


def _images_of(column: pa.Array) -> list[bytes]:
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    return [value or b"" for value in column.to_pylist()]


def _with_images(column: pa.Array, images: Sequence[bytes]) -> pa.Array | None:
    kind = column.type
    if pa.types.is_struct(kind):
        names = [kind.field(index).name for index in range(kind.num_fields)]
        inner = _with_images(pc.struct_field(column, "bytes"), images)
        fields = [inner if name == "bytes" else pc.struct_field(column, name) for name in names]
        return None if inner is None else pa.StructArray.from_arrays(fields, fields=list(kind))
    is_binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return pa.array(images, kind) if is_binary else None


def _with_new_ids(id_column: str | None, rows: pa.Table, table: pa.Table) -> pa.Table | None:
    if id_column is None:
        return rows
    kind = table.schema.field(id_column).type
    if not pa.types.is_integer(kind):
        return with_texts(rows, id_column, [f"chaos-{index}" for index in range(rows.num_rows)])
    largest = pc.max(table.column(id_column)).as_py() or 0
    ids = [largest + 1 + index for index in range(rows.num_rows)]
    return _with_column(rows, id_column, pa.array(ids, kind))


def to_parquet(table: pa.Table) -> bytes:
    """Encode a table as a shard of two row groups, its schema as it is."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=max(1, -(-table.num_rows // 2)))
    return buffer.getvalue()
