"""List the shards of a job once, with the rows and extents that are known before reading.

In globs `*` and `?` stay within a segment of a path; `**` is any number of segments.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.core.errors import InputMissing, JobError
from pipeline.core.registry import SOURCES
from pipeline.core.user_code import extension_errors
from pipeline.job.source import Source
from pipeline.sources.formats.lake_format import LakeFormat
from pipeline.sources.listing.refused import refuse_tables, require_file_type, table_of
from pipeline.sources.source_format import NONE_LEFT_OUT, LeftOut, format_of
from pipeline.sources.units import Extent
from pipeline.storage.errors import options_named
from pipeline.storage.skipped import SkipCounter, Skipped, SkipReason, is_utf8, reason_of_name
from pipeline.storage.store import Store, StoredFile, read_lines
from pipeline.storage.uris import join

_CHARACTERS = re.compile(r"[*?\[]")


def is_glob(text: str) -> bool:
    """Tell whether a text contains characters of a glob."""
    return _CHARACTERS.search(text) is not None


def split_glob(uri: str) -> tuple[str, str]:
    """Split a URI before its first segment with a glob character."""
    match = _CHARACTERS.search(uri)
    if match is None:
        return uri.rstrip("/") or "/", ""
    cut = uri.rfind("/", 0, match.start())
    return (uri[:cut] or "/", uri[cut + 1 :]) if cut >= 0 else (".", uri)


@functools.lru_cache(256)
def compiled(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a glob.

    Raises:
        JobError: `**` is only a part of a segment.
    """
    from fsspec.utils import glob_translate

    try:
        return re.compile(glob_translate(pattern))
    except ValueError:
        raise JobError(
            f"source.uri: {pattern!r}: `**` has to be a whole segment, as in a/**/*.jpg"
        ) from None


def reaches_below(pattern: str, folder: Sequence[str]) -> bool:
    """Tell whether a path below a folder, given by its segments, could match a glob."""
    parts = pattern.split("/")
    for part, name in zip(parts, folder, strict=False):
        if part == "**":  # it also covers the rest of the folder
            return True
        if not compiled(part).match(name):
            return False
    return len(parts) > len(folder)


_STAT_THREADS = 16


@dataclass(frozen=True)
class Inputs:
    """The shards of a job and their extents, in input order."""

    root: str
    shards: tuple[StoredFile, ...]
    extents: tuple[Extent, ...]
    pass_through: pa.Schema = field(default_factory=lambda: pa.schema([]))
    skipped: Skipped = field(default_factory=Skipped)
    """Files below the source that are no shards of the format; reported, never read."""
    fields: pa.Schema = field(kw_only=True)
    """The input columns, with the types of the shards."""
    table: pa.Schema | None = None
    """The lake table whose files the shards are, as `TableFile.table`; None if there is none."""
    left_out: LeftOut = NONE_LEFT_OUT

    @property
    def num_rows(self) -> int:
        return sum(extent.num_rows for extent in self.extents)

    @property
    def num_bytes(self) -> int:
        return sum(shard.size_bytes for shard in self.shards)


def open_source(source: Source) -> tuple[Store, str]:
    """Return the store at the fixed part of `source.uri`, and the glob below it ('': all)."""
    root, pattern = split_glob(source.uri)
    store = Store(root, source.storage_options)
    while pattern:
        name, _, rest = pattern.partition("/")
        if is_glob(name) and not _is_there(store, name):
            break
        # An existing name such as `br[1]` is not a glob.
        store, pattern = Store(join(store.uri, name), source.storage_options), rest
    return store, pattern


def _is_there(store: Store, name: str) -> bool:
    # In an object store this costs requests, and names with a star are rare.
    return ("*" not in name or not store.is_object_store) and store.exists(name)


@options_named("source.storage_options")
def list_inputs(source: Source, *, max_extent_rows: int, may_be_empty: bool = False) -> Inputs:
    """List the shards under `source.uri` and measure them.

    Args:
        max_extent_rows: Approximate maximum of rows to which row groups are joined to extents.
        may_be_empty: Take an object-store prefix without objects for an empty folder, not a missing
            one; the store does not distinguish them.

    Raises:
        JobError: The source cannot be read, or lacks columns that the job names.
        InputMissing: `source.uri` does not exist, or shards that the job names are missing.
    """
    store, pattern = open_source(source)
    store, form = store.pinned(), format_of(source)
    skipped, root = Skipped(), store.uri
    if isinstance(form, LakeFormat):
        if pattern:
            raise JobError(
                f"source.uri = {source.uri!r}: must be the folder of a table, not a glob"
            )
        shards = tuple(form.list_table(store, source))
    elif source.files is not None:
        shards = _named_shards(store, pattern, source)
    else:
        root, shards, skipped = _list_shards(
            store, pattern, form.suffixes, source, may_be_empty=may_be_empty
        )
    store = Store(root, source.storage_options)
    is_one = len(shards) == 1 and source.uri.endswith(shards[0].path)
    is_named = is_one or source.files is not None or form.is_lake
    require_file_type(store, shards, form, are_named=is_named)
    with extension_errors(SOURCES, source.format):
        measured = form.measure(store, shards, source, max_extent_rows=max_extent_rows)
    if source.where is not None:  # a shard without a chosen row is no input
        paths = {extent.path for extent in measured.extents}
        shards = tuple(shard for shard in shards if shard.path in paths)
    return Inputs(
        root,
        shards,
        measured.extents,
        measured.pass_through,
        skipped,
        fields=measured.fields,
        table=measured.table,
        left_out=measured.left_out,
    )


def _list_shards(
    store: Store, pattern: str, suffixes: Sequence[str], source: Source, *, may_be_empty: bool
) -> tuple[str, tuple[StoredFile, ...], Skipped]:
    choice = _Choice(tuple(suffixes), pattern, follow_links=source.follow_links)
    shards = tuple(store.list_chosen(choice))
    refuse_tables(store, shards, choice.tables)
    skipped = choice.tally.result()
    is_nothing = not shards and not skipped.total
    root = store.uri
    # Not a folder: a single shard is listed through its parent.
    if is_nothing and not pattern and (single := store.as_file()) is not None:
        folder, shard = single
        return folder.uri, (shard,), Skipped()
    if is_nothing and not (store.is_object_store and may_be_empty):
        require_there(store)
    return root, shards, skipped


class _Choice:
    """Chooses the files of a format, and counts the other files of the glob."""

    def __init__(self, suffixes: tuple[str, ...], pattern: str, *, follow_links: bool) -> None:
        self.follow_links = follow_links
        self.tally = SkipCounter()
        self.tables: set[tuple[str, str]] = set()
        """Lake tables at or below the root, whether or not the glob matches their files."""
        self._suffixes, self._pattern = suffixes, pattern
        self._matches = compiled(pattern).match if pattern else None

    def takes(self, file: StoredFile) -> bool:
        if table := table_of(file.path):
            self.tables.add(table)
        if self._matches and not self._matches(file.path):
            return False
        reason = reason_of_name(file.path)
        if reason is None and not is_utf8(file.path):
            reason = SkipReason.NOT_UTF8
        if reason is None and not file.path.lower().endswith(self._suffixes):
            reason = SkipReason.EXTENSION
        if reason is not None:
            self.tally.add(file.path, reason)
        return reason is None

    def skip(self, path: str, reason: SkipReason) -> None:
        is_meant = not self._matches or self._matches(path) is not None
        if reason is SkipReason.LINK_TO_FOLDER and not is_meant:
            is_meant = reaches_below(self._pattern, path.split("/"))
        if is_meant:
            self.tally.add(path, reason_of_name(path) or reason)


def named_files(source: Source) -> list[str]:
    """Return the shards that the job names, spelled as in a listing."""
    names: Sequence[str] = source.files or ()
    if isinstance(source.files, str):
        names = read_lines(source.files, source.storage_options, "source.files")
    return [_spelled(name, is_object="://" in source.uri) for name in names]


def _spelled(name: str, *, is_object: bool) -> str:
    """Return a path without `.` and, except for object keys, without empty segments."""
    segments = name.split("/")
    kept = [s for i, s in enumerate(segments) if s != "." and (s or is_object or i == 0)]
    return "/".join(kept).rstrip("/")


def require_there(store: Store) -> None:
    """Refuse a missing source; an empty folder is not missing.

    Raises:
        InputMissing: The file or folder does not exist, or no object lies below the prefix.
    """
    if not store.exists(""):
        what = "no object there" if store.is_object_store else "no such file or folder"
        hint = ", or set gates.allow_empty to true" if store.is_object_store else ""
        raise InputMissing(
            f"source.uri = {store.url('')}: {what}; run again when it is there{hint}"
        )


def _named_shards(store: Store, pattern: str, source: Source) -> tuple[StoredFile, ...]:
    """Look up the shards that the job names, in its order.

    Raises:
        JobError: `uri` is a glob, or a shard is named twice.
        InputMissing: A shard is missing.
    """
    if pattern:
        raise JobError(
            f"source.uri = {source.uri!r}: must be a folder, since source.files is given"
        )
    names = named_files(source)
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise JobError(f"source.files: {doubled[0]} is named twice")
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        files = list(pool.map(store.stat, names))
    missing = [name for name, file in zip(names, files, strict=True) if file is None]
    if missing:
        raise InputMissing(
            f"source.files: {len(missing)} of {len(names)} are missing, first "
            f"{store.url(missing[0])}; run again when they are there"
        )
    return tuple(file for file in files if file is not None)


def describe_no_input(source: Source, skipped: Skipped, left_out: LeftOut = NONE_LEFT_OUT) -> str:
    """Say in one line why a source has no shards, by its listing."""
    if any(left_out):
        return f"source.where = {source.where!r}: no row matches; {left_out.describe()} left out"
    _, pattern = split_glob(source.uri)
    suffixes = format_of(source).suffixes
    if not skipped.total:
        hint = f"matches no file; a glob names files, as in **/*{suffixes[0]}"
        return f"{source.uri} {hint if pattern else 'holds no files'}"
    files = "1 file" if skipped.total == 1 else f"{skipped.total} files"
    reads = f"format {source.format} reads {' '.join(suffixes)}; " if skipped.extensions else ""
    return (
        f"{source.uri} {'matches' if pattern else 'holds'} {files}, none read: "
        f"{reads}skipped: {skipped.describe()}"
    )
