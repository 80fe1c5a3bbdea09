"""Read a published version whole: for notebooks and commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Part, current_manifest, not_published
from pipeline.commit.part_reader import read_columns
from pipeline.core.errors import InfraError
from pipeline.core.hive_paths import restore
from pipeline.storage.store import Store

_READ_TRIES = 5


def locate(uri: str, storage_options: dict[str, Any] | None = None) -> tuple[Store, Layout | None]:
    """Find the output that a URI points into, and the partition if it names one.

    Accepts the sink's root, and a partition's folder under `predictions/`.
    """
    trimmed = uri.rstrip("/")
    head, separator, tail = trimmed.rpartition("/predictions")
    if separator and (not tail or (tail.startswith("/") and "/" not in tail[1:])):
        return Store(head, storage_options or {}), Layout(tail[1:] or None)
    return Store(trimmed, storage_options or {}), None


def read_predictions(
    uri: str,
    partition: str | None = None,
    *,
    columns: Sequence[str] | None = None,
    storage_options: dict[str, Any] | None = None,
) -> pa.Table:
    """Read one whole published version into memory, for notebooks.

    Args:
        uri: The sink's root, or a partition's folder.
        partition: For instance `date=2026-11-24`; None for an output without partitions.
        columns: The columns to read; None reads all.
        storage_options: fsspec options.

    Returns:
        The rows in input order; with `sink.partition_columns` by value, in input order within each,
        and those columns last.

    Raises:
        JobError: Nothing is published there.
        InfraError: A part that the current manifest names is missing.
    """
    store, found = locate(uri, storage_options)
    return read_current(store, found or Layout(partition), columns)


def read_current(store: Store, layout: Layout, columns: Sequence[str] | None = None) -> pa.Table:
    """Read what is current, whole, also while it is being replaced; see `read_predictions`."""
    missing = ""
    for _ in range(_READ_TRIES):
        manifest = current_manifest(store, layout)
        if manifest is None:
            raise not_published(store, layout)
        try:
            hive = manifest.partition_columns
            tables = [read_part(store, part, columns, hive) for part in manifest.parts]
        except FileNotFoundError as error:
            # Replaced while it was read: the next round takes the new version whole.
            missing = str(error)
            continue
        return pa.concat_tables(tables)
    raise InfraError(f"{store.url('')}: partition {layout.name}: a part is missing: {missing}")


def read_part(
    store: Store,
    part: Part,
    columns: Sequence[str] | None = None,
    partition_columns: Mapping[str, str] | None = None,
) -> pa.Table:
    """Read one published part, with the columns that its folders hold."""
    hive = partition_columns or {}
    rows = restore(read_columns(store, part.path, columns), part.path, hive)
    return rows if columns is None else rows.select(list(columns))
