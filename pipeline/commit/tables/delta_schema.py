"""Which columns a Delta table can hold, and which ones it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.commit.tables.delta_storage import table_url
from pipeline.core.errors import JobError
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from deltalake import DeltaTable


def require_type(name: str, kind: pa.DataType) -> None:
    """Refuse what Delta Lake has no type for; the library would take some of it for another."""
    from deltalake import Schema

    is_bad = pa.types.is_unsigned_integer(kind) or pa.types.is_null(kind)
    is_bad = is_bad or (pa.types.is_timestamp(kind) and kind.unit == "ns")
    try:
        Schema.from_arrow(pa.schema([(name, kind)]))
    except Exception:  # noqa: BLE001  # the library raises plain Exception
        is_bad = True
    if is_bad:
        raise JobError(
            f"sink.table: column {name} is {kind}, which a Delta table cannot hold; declare "
            "another type in source.casts (int64, timestamp[us]) or leave the column out"
        )
    for index in range(kind.num_fields):
        require_type(name, kind.field(index).type)


def new_fields(
    store: Store, table: DeltaTable, schema: pa.Schema, partition_by: list[str]
) -> list[pa.Field]:
    """Return the columns that the table does not have yet.

    Raises:
        JobError: A column has another type there, or the table other partitions.
    """
    from deltalake import Schema

    there = table.metadata().partition_columns
    if there != partition_by:
        raise JobError(
            f"{table_url(store)}: this Delta table is partitioned by ({', '.join(there)}), the "
            f"job by ({', '.join(partition_by)}); write to another sink.uri"
        )
    known = {field.name: field.type for field in table.schema().fields}
    new = []
    for field, wanted in zip(schema, Schema.from_arrow(schema).fields, strict=True):
        if field.name not in known:
            new.append(field)
        elif known[field.name] != wanted.type:
            raise JobError(
                f"{table_url(store)}: column {field.name} of this Delta table is "
                f"{known[field.name]}, the job makes {wanted.type}; write to another sink.uri"
            )
    return new
