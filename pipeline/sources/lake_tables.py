"""Lake tables, whose log says which rows are live: read as loose files, deleted ones would be too.

What ends in `.parquet` below the folder of a table is a file of that table, live or not.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from pipeline.core.errors import JobError
from pipeline.storage.interface import StoredFile
from pipeline.storage.store import Store

_MARKS: Final = ("_delta_log/", ".hoodie", ".metadata.json")
"""One of these is in the path of each file that `_TABLE_FILE` matches."""
_TABLE_FILE = re.compile(
    r"(?P<folder>|.*?/)(?:(?P<delta>_delta_log/)|(?P<hudi>\.hoodie(?:/|_partition_metadata))"
    r"|(?P<iceberg>metadata/[^/]+\.metadata\.json(?:\.gz)?$))"
)
_ADVICE: Final = {
    "delta": (
        "a Delta table",
        "pyarrow.dataset.write_dataset(deltalake.DeltaTable('TABLE').to_pyarrow_dataset(), "
        "'ROWS', format='parquet')",
    ),
    "hudi": (
        "a Hudi table",
        "spark.read.format('hudi').load('TABLE').write.parquet('ROWS')",
    ),
    "iceberg": (
        "an Iceberg table",
        "pyarrow.parquet.write_table(pyiceberg.table.StaticTable.from_metadata("
        "'TABLE/metadata/NEWEST.metadata.json').scan().to_arrow(), 'ROWS.parquet')",
    ),
}
"""What a table is, and the line of Python that writes its live rows."""


class LakeTable(NamedTuple):
    """A folder that is a table."""

    folder: str
    """Relative to the root of the listing, '' or ending in `/`."""
    format: str
    """A key of `_ADVICE`."""


def table_of(path: str) -> LakeTable | None:
    """Return the table whose log or metadata a file is; None for any other file."""
    if not any(mark in path for mark in _MARKS) or (match := _TABLE_FILE.match(path)) is None:
        return None
    return LakeTable(match["folder"], str(match.lastgroup))


def refuse_tables(store: Store, shards: Iterable[StoredFile], tables: Iterable[LakeTable]) -> None:
    """Refuse shards that are files of a table.

    Args:
        store: The root of the listing.
        shards: What was chosen of it.
        tables: Those whose logs were listed.

    Raises:
        JobError: Says what the table is, and how to read its live rows.
    """
    files = [shard.path for shard in shards if shard.path.lower().endswith(".parquet")]
    for folder, table_format in sorted(tables):
        if any(path.startswith(folder) for path in files):
            raise _refusal(store.url(folder), table_format)
    for uri, table_format in _tables_above(store) if files else ():
        raise _refusal(uri, table_format)


def _tables_above(store: Store) -> Iterator[tuple[str, str]]:
    """Yield the tables that have a listed folder as a partition, or as their folder of data.

    Only names that such folders have are looked above: each look is a request to an object store.
    """
    above, _, name = store.uri.rpartition("/")
    while "=" in name:
        yield from _tables_at(above, store)
        above, _, name = above.rpartition("/")
    if name == "data":
        yield from _tables_at(above, store)


def _tables_at(uri: str, below: Store) -> Iterator[tuple[str, str]]:
    # Who may read a folder need not be allowed to look above it.
    with contextlib.suppress(JobError):
        folder = Store(uri, below.storage_options)
        logs = [f"{name}/" for name in ("_delta_log", ".hoodie") if folder.exists(name)]
        for path in [*logs, *(file.path for file in folder.list_files("metadata"))]:
            if table := table_of(path):
                yield uri, table.format


def _refusal(uri: str, table_format: str) -> JobError:
    what, live_rows = _ADVICE[table_format]
    return JobError(
        f"source.uri: {uri} holds the files of {what}, with deleted and replaced rows: write the "
        f"live rows elsewhere by {live_rows.replace('TABLE', uri)}, or name the live files in "
        "source.files"
    )
