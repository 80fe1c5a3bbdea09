"""The tables of `sink.table`, by their format: that of a job, and that of a published version."""

from __future__ import annotations

from pipeline.commit.delta import Delta
from pipeline.commit.iceberg import Iceberg
from pipeline.commit.layout import DELTA_LOG
from pipeline.commit.manifest import Manifest
from pipeline.commit.sink_table import AnyTable
from pipeline.job.job import Sink, TableOptions
from pipeline.storage.store import Store

_FORMATS: dict[str, type[AnyTable]] = {table.format: table for table in (Delta, Iceberg)}


def table_of(sink: Sink, store: Store) -> AnyTable | None:
    """Return the table that a sink asks for, or None."""
    return _FORMATS[sink.table](store, sink.table_options) if sink.table else None


def published_table(store: Store, manifest: Manifest) -> AnyTable | None:
    """Return the table that a version is in, or None."""
    named = manifest.table
    if named.get("table") in _FORMATS:
        options = TableOptions.model_validate(named.get("table_options", {}))
        return _FORMATS[named["table"]](store, options)
    return Delta(store) if store.exists(DELTA_LOG) else None
