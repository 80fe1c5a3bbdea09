"""Read a published version whole: for notebooks and commands."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest, Part, current_manifest, not_published
from pipeline.commit.parts.part_reader import read_columns
from pipeline.core.errors import InfraError, JobError
from pipeline.core.hive_paths import restore
from pipeline.core.printable import clean_message
from pipeline.storage.store import Store

_READ_TRIES = 5
_Read = TypeVar("_Read")


def locate(
    uri: str | os.PathLike[str], storage_options: dict[str, Any] | None = None
) -> tuple[Store, Layout | None]:
    """Find the output that a URI points into, and the partition if it names one.

    Accepts the sink's root, also if it is called `predictions`, and a partition's folder under
    `predictions/`.

    Raises:
        JobError: It is no path or URI.
    """
    text = os.fspath(uri) if isinstance(uri, str | os.PathLike) else uri
    if not isinstance(text, str) or "\0" in text:
        raise JobError(f"{clean_message(repr(uri), 80)}: no place of an output; give a path or URI")
    trimmed = text.rstrip("/")
    head, separator, tail = trimmed.rpartition("/predictions")
    whole = Store(trimmed, storage_options or {})
    is_root = separator and not tail and whole.list_folders("_control")
    if separator and not is_root and (not tail or (tail.startswith("/") and "/" not in tail[1:])):
        return Store(head, storage_options or {}), Layout(tail[1:] or None)
    return whole, None


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
    """Read the current version of a partition whole; arguments and errors: `read_predictions`."""

    def read(manifest: Manifest) -> pa.Table:
        hive = manifest.partition_columns
        return pa.concat_tables([read_part(store, part, columns, hive) for part in manifest.parts])

    return of_current(store, layout, read)


def of_current(store: Store, layout: Layout, read: Callable[[Manifest], _Read]) -> _Read:
    """Return what `read` makes of the current version, also while that is being replaced.

    Args:
        read: Reads one whole version. If a part of it is gone (FileNotFoundError), the version was
            replaced meanwhile: it is called again, for the new one.

    Raises:
        JobError: Nothing is published.
        InfraError: A part that the current manifest names is missing.
    """
    missing = ""
    for _ in range(_READ_TRIES):
        manifest = require_current(store, layout)
        try:
            return read(manifest)
        except FileNotFoundError as error:
            missing = str(error)
    raise InfraError(f"{store.url('')}: partition {layout.name}: a part is missing: {missing}")


def require_current(store: Store, layout: Layout) -> Manifest:
    """Return the manifest of what is published now.

    Raises:
        JobError: Nothing is published; the message says what there is instead.
    """
    manifest = current_manifest(store, layout)
    if manifest is None:
        raise not_published(store, layout)
    return manifest


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
