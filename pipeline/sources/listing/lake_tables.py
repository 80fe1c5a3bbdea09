"""Lake tables, whose log says which rows are live: read as loose files, deleted ones would be too.

What ends in `.parquet` below the folder of a table is a file of that table, live or not.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from typing import Final

from pipeline.core.errors import JobError
from pipeline.storage.interface import StoredFile
from pipeline.storage.store import Store

_FILE_OF_TABLE = re.compile(
    r"(|.*?/)(?:(_delta_log)/|(\.hoodie)(?:/|_partition_metadata)|(metadata)/[^/]+\.metadata\.json)"
)
_LIVE_ROWS: Final = {
    "_delta_log": "a Delta table: pyarrow.dataset.write_dataset(deltalake.DeltaTable('TABLE')"
    ".to_pyarrow_dataset(), 'ROWS', format='parquet')",
    ".hoodie": "a Hudi table: spark.read.format('hudi').load('TABLE').write.parquet('ROWS')",
    "metadata": "an Iceberg table: pyarrow.parquet.write_table(pyiceberg.table.StaticTable"
    ".from_metadata('TABLE/metadata/NEWEST.metadata.json').scan().to_arrow(), 'ROWS.parquet')",
}
"""What makes a folder a table -> what it is, and the line that writes its live rows."""


def table_of(path: str) -> tuple[str, str] | None:
    """Return the table whose log or metadata a file is; None for any other file.

    Returns:
        Its folder, '' or ending in `/`, and what makes it one, a key of `_LIVE_ROWS`.
    """
    if "_delta_log/" not in path and ".hoodie" not in path and ".metadata.json" not in path:
        return None
    match = _FILE_OF_TABLE.match(path)
    return match and (match[1], match[match.lastindex or 0])


def refuse_tables(
    store: Store, shards: Iterable[StoredFile], tables: Iterable[tuple[str, str]]
) -> None:
    """Refuse shards that are files of a table.

    Args:
        store: The root of the listing.
        shards: What was chosen of it.
        tables: What `table_of` says of all files below the root.

    Raises:
        JobError: Says what the table is, and how to read its live rows.
    """
    files = [shard.path for shard in shards if shard.path.lower().endswith(".parquet")]
    for folder, mark in sorted(tables):
        if any(path.startswith(folder) for path in files):
            raise _refusal(store.url(folder), mark)
    # Only folders with names of partitions, or of an Iceberg table's files, are looked above.
    above, _, name = store.uri.rpartition("/")
    while files and ("=" in name or name == "data") and not above.endswith(":/"):  # a bucket
        _refuse_at(Store(above or "/", store.storage_options))
        above, _, name = above.rpartition("/")


def _refuse_at(folder: Store) -> None:
    names = []
    with contextlib.suppress(JobError):  # who may read a folder may be denied to look above it
        names = [f"{name}/" for name in ("_delta_log", ".hoodie") if folder.exists(name)]
        names += [file.path for file in folder.list_files("metadata")]
    for table in filter(None, map(table_of, names)):
        raise _refusal(folder.uri, table[1])


def _refusal(uri: str, mark: str) -> JobError:
    what, _, line = _LIVE_ROWS[mark].partition(": ")
    return JobError(
        f"source.uri: {uri} holds the files of {what}, with deleted and replaced rows: write the "
        f"live rows elsewhere by {line.replace('TABLE', uri)}, or name live files in source.files"
    )
