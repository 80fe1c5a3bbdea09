"""Tables of the predictions beside the Parquet files: one format per file, and all of them by name.

A new format is a file with a class like `delta.Delta`, a line here, and a case in
tests/commit/tables/test_table_conformance.py; or a class in another distribution with an entry
point of group `pipeline.tables`. What commits knows the protocol only.
"""

from __future__ import annotations

from pipeline.commit.tables.base import TableFormat
from pipeline.core.registry import TABLES, get
from pipeline.job.extensions import options_of
from pipeline.job.job import Sink
from pipeline.storage.store import Store

REGISTRY = {"delta": "pipeline.commit.tables.delta:Delta"}


def table_of(sink: Sink, store: Store) -> TableFormat | None:
    """Return the table that a job's sink asks for; None if it asks for none.

    Raises:
        JobError: There is no such format here, or the distribution that brings it is broken.
    """
    if sink.table is None:
        return None
    kind = get(TABLES, sink.table)
    options = () if kind.Options is None else (options_of(kind.Options, sink.table_options),)
    found: TableFormat = kind(store, *options)
    return found
