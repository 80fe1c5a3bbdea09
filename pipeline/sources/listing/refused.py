"""Refuse shards that the format would misread: files of another type, and files of lake tables.

A damaged shard, or one of another type among others, costs its rows. The job is taken for wrong
only if the first shards all begin with the magic bytes of types that the format does not read. The
log of a lake table says which rows are live: a run over its loose files would predict deleted rows,
too.
"""

from __future__ import annotations

import contextlib
import logging
import re
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.core.backoff import BadBlockError, is_bad_block
from pipeline.core.errors import AccessDenied, JobError
from pipeline.core.media import FORMATS
from pipeline.core.printable import clean_message
from pipeline.core.registry import SOURCES, usable
from pipeline.sources.source_format import SourceFormat
from pipeline.storage.store import Store, StoredFile

log = logging.getLogger(__name__)

_HEAD_BYTES = 512
"""Of a shard, the first block of a tar."""
_SHARDS = 3
"""How many shards must begin wrongly; all, if there are fewer."""
_COMPRESSED = ("gzip", "zstd")


@dataclass(frozen=True)
class FileType:
    """A type of files that the first bytes prove."""

    name: str
    """As `SourceFormat.file_types` has it."""
    begins: str
    """For messages: the first bytes."""
    fits: Callable[[bytes], bool]
    """Tell by the first bytes whether a file certainly has this type."""


def _magic(*magics: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(magics)


def _is_tar(head: bytes) -> bool:
    """Tell whether the first block is a header whose checksum is right."""
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


FILE_TYPES = (
    FileType("Parquet", "PAR1", _magic(b"PAR1", b"PARE")),
    FileType("gzip", "1f 8b", _magic(b"\x1f\x8b\x08")),
    FileType("zstd", "28 b5 2f fd", _magic(b"\x28\xb5\x2f\xfd")),
    FileType("a tar", "the header of a tar", _is_tar),
    *(FileType(row.name, row.begins, row.fits) for row in FORMATS if row.begins),
)
"""The first that fits counts: compressed data may have the checksum of a tar's header by chance."""


def file_type_of(head: bytes) -> FileType | None:
    """Return the type that the first 512 bytes of a file prove; None if they prove none."""
    return next((file_type for file_type in FILE_TYPES if file_type.fits(head)), None)


def require_file_type(
    store: Store, shards: Sequence[StoredFile], form: SourceFormat, *, are_named: bool
) -> None:
    """Read the beginning of the first shard, and of the next ones if its type is wrong.

    Who may list a store may be denied to read it. That fails here, before anything is started,
    unless only some of the first shards are denied.

    Args:
        shards: In input order.
        form: The format of the job.
        are_named: Whether the job names the shards, so that their suffixes do not matter.

    Raises:
        JobError: The first shards all have other types, or all may not be read.
        OSError: The store cannot be read.
    """
    first: JobError | None = None
    for shard in shards[:_SHARDS]:
        try:
            wrong = _wrong_file_type(head_of(store, shard), form)
        except AccessDenied as error:
            first = first or error
            continue
        if wrong is None:
            if first:
                log.warning("%s; its rows will be quarantined", first)
            return
        first = first or JobError(f"source: {_mismatch_message(shard, wrong, are_named=are_named)}")
    if first:
        raise first


def head_of(store: Store, shard: StoredFile) -> bytes:
    """Return the first 512 bytes of a shard; none if it has vanished or cannot be read."""
    try:
        with store.open(shard.path) as handle:
            return bytes(handle.read(_HEAD_BYTES))
    except (FileNotFoundError, BadBlockError):
        return b""  # such a shard fails its rows later
    except OSError as error:
        if not is_bad_block(error):
            raise
        return b""


def _wrong_file_type(head: bytes, form: SourceFormat) -> FileType | None:
    """Return the type of a shard that the format does not read; None if it may read the shard."""
    file_type = file_type_of(head)
    if file_type is None or not form.file_types or file_type.name in form.file_types:
        return None
    # Of files that are a row each, one that no format reads costs its row.
    is_row = form.counts_rows == "listing"
    return None if is_row and not _readers(file_type) else file_type


def _readers(file_type: FileType) -> list[SourceFormat]:
    """Return the formats that read a file; none if only its compression is known."""
    if file_type.name in _COMPRESSED:
        return []
    return [form for _, form in usable(SOURCES) if file_type.name in form.file_types]


def _mismatch_message(shard: StoredFile, file_type: FileType, *, are_named: bool) -> str:
    begins = f"{clean_message(shard.path)} begins with {file_type.begins}"
    what = f"{begins}: it is {file_type.name}"
    if not (readers := _readers(file_type)):
        return f"{what}; decompress it"
    form = readers[0]
    renamed = ""
    if not are_named and not shard.path.lower().endswith(form.suffixes):
        renamed = f"name the shards *{form.suffixes[0]} and "
    return f"{what}; {renamed}set source.format: {form.name}"


_FILE_OF_TABLE = re.compile(
    r"(|.*?/)(?:(_delta_log)/|(\.hoodie)(?:/|_partition_metadata)|(metadata)/[^/]+\.metadata\.json)"
)
_LIVE_ROWS: Final = {
    "_delta_log": "a Delta table: set source.uri to TABLE and source.format: delta, which reads "
    "its live rows",
    ".hoodie": "a Hudi table: write its live rows elsewhere by "
    "spark.read.format('hudi').load('TABLE').write.parquet('ROWS')",
    "metadata": "an Iceberg table: set source.uri to TABLE, source.format: iceberg and "
    "source.options: {catalog: NAME, table: NAMESPACE.NAME}, which reads its live rows",
}
"""The mark of a table -> its name, and how to read its live rows."""


def table_of(path: str) -> tuple[str, str] | None:
    """Return the lake table to whose log or metadata a file belongs; None for other files.

    Returns:
        Its folder, '' or ending in `/`, and its mark, a key of `_LIVE_ROWS`.
    """
    if "_delta_log/" not in path and ".hoodie" not in path and ".metadata.json" not in path:
        return None
    match = _FILE_OF_TABLE.match(path)
    return match and (match[1], match[match.lastindex or 0])


def lake_format_at(store: Store) -> str | None:
    """Return the format that reads the lake table at the root of a store; None if it is none."""
    with contextlib.suppress(JobError):  # access may be denied
        if store.exists("_delta_log/"):
            return "delta"
        if store.exists("metadata/version-hint.text"):
            return "iceberg"
    return None


def refuse_tables(
    store: Store, shards: Iterable[StoredFile], tables: Iterable[tuple[str, str]]
) -> None:
    """Refuse shards that are files of a lake table.

    Args:
        store: The root of the listing.
        shards: The chosen files.
        tables: The results of `table_of` for all files below the root.

    Raises:
        JobError: The message names the table, and how to read its live rows.
    """
    files = [shard.path for shard in shards if shard.path.lower().endswith(".parquet")]
    for folder, mark in sorted(tables):
        if any(path.startswith(folder) for path in files):
            raise _refusal(store.url(folder), mark)
    # Only above folders of partitions, or of the files of an Iceberg table, are tables sought.
    above, _, name = store.uri.rpartition("/")
    while files and ("=" in name or name == "data") and not above.endswith(":/"):  # a bucket
        _refuse_at(Store(above or "/", store.storage_options))
        above, _, name = above.rpartition("/")


def _refuse_at(folder: Store) -> None:
    if mark := mark_at(folder):
        raise _refusal(folder.uri, mark)


def mark_at(folder: Store) -> str | None:
    """Return the mark of the lake table in a folder, a key of `_LIVE_ROWS`; None if it is none."""
    names = []
    with contextlib.suppress(JobError):  # access may be denied
        names = [f"{name}/" for name in ("_delta_log", ".hoodie") if folder.exists(name)]
        names += [file.path for file in folder.list_files("metadata")]
    return next((table[1] for table in map(table_of, names) if table), None)


def _refusal(uri: str, mark: str) -> JobError:
    what, _, line = _LIVE_ROWS[mark].partition(": ")
    return JobError(
        f"source.uri: {uri} holds the files of {what}, with deleted and replaced rows: "
        f"{line.replace('TABLE', uri)}, or name live files in source.files"
    )
