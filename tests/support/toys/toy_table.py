"""A table that no code of the pipeline knows: one file per version, with the names of its parts."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest
from pipeline.commit.tables.base import TableFormat
from pipeline.core.errors import JobError
from pipeline.job.section import Section
from pipeline.process.failpoints import failpoint
from pipeline.storage.store import Store

NAME = "part-list"
FOLDER = "predictions/_part_list"


class PartListOptions(Section):
    """What a job may say in `sink.table_options`."""

    folder: str = FOLDER
    """Where the lists lie."""


class PartList(TableFormat):
    """`_part_list/<partition>/<number>`: the highest number counts."""

    name = NAME
    Options = PartListOptions

    def __init__(self, store: Store, options: PartListOptions) -> None:
        self._store, self._folder = store, options.folder

    def require(
        self, layout: Layout, partition_columns: Mapping[str, str], schema: pa.Schema
    ) -> None:
        if "secret" in schema.names:
            raise JobError("sink.table: part-list does not list a column secret")

    def commit(self, layout: Layout, manifest: Manifest) -> None:
        path = f"{self._folder}/{layout.name}/{manifest.number:06d}"
        if self._store.exists(path):
            return
        failpoint("before_table")
        self._store.put(path, "\n".join(part.path for part in manifest.parts).encode())


def listed(store: Store) -> set[str]:
    """Return the parts of the newest version of each partition."""
    paths = sorted(file.path for file in store.list_files(FOLDER))
    newest = {path.split("/")[2]: path for path in paths}
    return {line for path in newest.values() for line in store.read_bytes(path).decode().split()}
