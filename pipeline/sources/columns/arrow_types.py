"""Arrow types: which one a column of the output can have, and which one a shard's column becomes.

No type is assumed to work: a column of nulls of the type is written, read and filtered by the Arrow
functions that real columns pass through, and must come back with the same type.
"""

from __future__ import annotations

import io
import re
import zoneinfo
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.errors import JobError


def published_type(dtype: pa.DataType) -> pa.DataType:
    """Return the type as which columns of a type are published.

    Text and binary views become plain text and binary: Arrow cannot choose rows of views. Extension
    types become their storage types: a registered extension may run code when it is read. Other
    types stay.
    """
    if isinstance(dtype, pa.BaseExtensionType):
        return published_type(dtype.storage_type)
    if pa.types.is_string_view(dtype):
        return pa.string()
    if pa.types.is_binary_view(dtype):
        return pa.binary()
    if pa.types.is_struct(dtype):
        return pa.struct([_field(field) for field in _children(dtype)])
    if pa.types.is_map(dtype):
        return pa.map_(_field(dtype.key_field), _field(dtype.item_field), dtype.keys_sorted)
    if pa.types.is_fixed_size_list(dtype):
        return pa.list_(_field(dtype.value_field), dtype.list_size)
    for is_type, make in _LISTS:
        if is_type(dtype):
            return make(_field(dtype.value_field))
    return dtype


_LISTS = (
    (pa.types.is_list, pa.list_),
    (pa.types.is_large_list, pa.large_list),
    (pa.types.is_list_view, pa.list_view),
    (pa.types.is_large_list_view, pa.large_list_view),
)


def _children(dtype: pa.DataType) -> Sequence[pa.Field]:
    return [dtype.field(index) for index in range(dtype.num_fields)]


def _field(field: pa.Field) -> pa.Field:
    # Extension types inside others stay, for `has_extension` to find.
    is_extension = isinstance(field.type, pa.BaseExtensionType)
    return field if is_extension else field.with_type(published_type(field.type))


def unified(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the published type that holds the values of both types; None if there is none.

    Types are unified as Arrow does it, and all text types are one. A value that the type cannot
    hold, such as a large integer in a double, fails its cast. Decimals do not become doubles, which
    would round them.
    """
    one, other = published_type(one), published_type(other)
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    one, other = plain_type(one), plain_type(other)
    if any(map(pa.types.is_decimal, (one, other))) and any(map(pa.types.is_floating, (one, other))):
        return None
    schemas = [pa.schema([("column", dtype)]) for dtype in (one, other)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None


def plain_type(dtype: pa.DataType) -> pa.DataType:
    """Return the value type of a dictionary; other types stay."""
    return dtype.value_type if pa.types.is_dictionary(dtype) else dtype


def is_text(dtype: pa.DataType) -> bool:
    """Tell whether a type holds text."""
    return bool(
        pa.types.is_string(dtype)
        or pa.types.is_large_string(dtype)
        or pa.types.is_string_view(dtype)
    )


def is_binary(dtype: pa.DataType) -> bool:
    """Tell whether a type holds bytes."""
    return bool(
        pa.types.is_binary(dtype)
        or pa.types.is_large_binary(dtype)
        or pa.types.is_binary_view(dtype)
        or pa.types.is_fixed_size_binary(dtype)
    )


def is_list(dtype: pa.DataType) -> bool:
    """Tell whether a type holds lists, of one length or of several."""
    return bool(
        pa.types.is_list(dtype)
        or pa.types.is_large_list(dtype)
        or pa.types.is_fixed_size_list(dtype)
    )


def is_number(dtype: pa.DataType) -> bool:
    """Tell whether a type holds numbers or booleans."""
    return bool(
        pa.types.is_integer(dtype)
        or pa.types.is_floating(dtype)
        or pa.types.is_boolean(dtype)
        or pa.types.is_decimal(dtype)
    )


def has_extension(dtype: pa.DataType) -> bool:
    """Tell whether a type is an extension type or contains one."""
    if isinstance(dtype, pa.BaseExtensionType):
        return True
    return any(has_extension(field.type) for field in _children(dtype))


def type_trouble(dtype: pa.DataType) -> str:
    """Return why columns of a type cannot be published, or ''."""
    if has_extension(dtype):
        return "extension types are not copied"
    rows = pa.table({"column": pa.nulls(2, dtype)})
    try:
        for _ in range(2):  # staged, then published
            buffer = io.BytesIO()
            pq.write_table(pa.concat_tables([rows, rows]), buffer)
            rows = pq.ParquetFile(pa.BufferReader(buffer.getvalue())).read(use_threads=False)
            pa.ListArray.from_arrays(pa.array([0, 4], pa.int32()), rows.to_struct_array().chunk(0))
            rows = rows.filter(pa.array([True, False, True, True])).take(pa.array([0, 2]))
        rows.cast(pa.schema([pa.field("column", dtype)]))
    except (pa.ArrowException, NotImplementedError) as error:
        return f"Arrow cannot write it to Parquet and choose rows of it: {error}"
    kept = rows.schema.field("column").type
    return "" if kept == dtype else f"Parquet keeps it as {kept}"


_ZONED = re.compile(r"timestamp\[(s|ms|us|ns), ?tz=([^\]]+)\]")
_OFFSET = re.compile(r"[+-]\d\d:\d\d")
_DECIMAL = re.compile(r"decimal(32|64|128|256)\((\d+), ?(-?\d+)\)")


def _with_parameters(alias: str) -> pa.DataType | None:
    """Return a type whose name Arrow writes but does not parse; None for any other."""
    if zoned := _ZONED.fullmatch(alias):
        if not _OFFSET.fullmatch(zoned[2]):
            zoneinfo.ZoneInfo(zoned[2])  # raises if there is none
        return pa.timestamp(zoned[1], tz=zoned[2])
    if number := _DECIMAL.fullmatch(alias):
        make = getattr(pa, f"decimal{number[1]}")
        return make(int(number[2]), int(number[3]))
    return None


def parse_type(column: str, alias: str) -> pa.DataType:
    """Parse the name of a type as Arrow spells it, such as `timestamp[us, tz=UTC]`.

    Raises:
        JobError: Arrow has no such type, or the type cannot be published.
    """
    where = f"source.casts.{column} = {alias!r}"
    try:
        dtype = _with_parameters(alias) or pa.type_for_alias(alias)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        raise JobError(
            f"{where}: no Arrow type; write int64, double, string, date32, timestamp[us], "
            "timestamp[us, tz=UTC], decimal128(38, 9), ..."
        ) from None
    if trouble := type_trouble(dtype):
        raise JobError(f"{where}: {trouble}; declare another type")
    return dtype
