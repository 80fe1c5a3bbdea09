"""Read published rows by the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Part, locate, require_current
from pipeline.commit.parts.part_file import read_columns
from pipeline.core.hive_paths import restore
from pipeline.published.dataset import PublishedParts
from pipeline.storage.store import Store


def read_predictions(
    uri: str,
    partition: str | None = None,
    *,
    columns: Sequence[str] | None = None,
    storage_options: dict[str, Any] | None = None,
) -> pa.Table:
    """The current version of a partition, in input order; the URI may name the partition."""
    store, layout = locate(uri, storage_options)
    return read_current(store, layout or Layout(partition), columns)


def read_current(store: Store, layout: Layout, columns: Sequence[str] | None = None) -> pa.Table:
    """The current version of a partition."""
    versions = [(layout, require_current(store, layout))]
    rows = PublishedParts.of(store, versions, "predictions").dataset()
    return rows.to_table(columns=None if columns is None else [*columns])


def read_in_turn(store: Store, layout: Layout) -> pa.Table:
    """The same by operations that follow each other; a dataset opens several parts at once."""
    versions = [(layout, require_current(store, layout))]
    parts = PublishedParts.of(store, versions, "predictions").parts
    return pa.concat_tables(part.file.find(store, partial(read_columns, store)) for part in parts)


def read_part(
    store: Store,
    part: Part,
    columns: Sequence[str] | None = None,
    partition_columns: Mapping[str, str] | None = None,
) -> pa.Table:
    """One part, with the columns that its folders hold."""
    hive = partition_columns or {}
    rows = restore(read_columns(store, part.path, columns), part.path, hive)
    return rows if columns is None else rows.select(list(columns))
