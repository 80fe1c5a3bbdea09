"""List the inputs of a job, once: which shards there are, how many rows they hold, and where
each can be cut. Knows file names and Parquet footers; reads no row. What lies in a tar is known
only when it has been read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import pyarrow as pa

from pipeline.columns import check_names
from pipeline.errors import InputMissing, JobError
from pipeline.extents import Extent
from pipeline.job_source import Source
from pipeline.parquet_inputs import measure_parquet
from pipeline.retry import BadBlockError, is_bad_block
from pipeline.single_file import read_lines
from pipeline.storage import Store, StoredFile
from pipeline.tar import column_type

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp")
PARQUET_SUFFIXES = (".parquet", ".pq")
# Compressed ones are listed too: one that cannot be read must not be passed over in silence.
TAR_SUFFIXES = (
    *(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst"),
)
_SUFFIXES = {"images": IMAGE_SUFFIXES, "parquet": PARQUET_SUFFIXES, "webdataset": TAR_SUFFIXES}
_FOOTER_THREADS = 16
_STAT_THREADS = 16
_GLOB_CHARACTERS = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Inputs:
    """All that is to be read, in input order."""

    root: str
    shards: tuple[StoredFile, ...]
    extents: tuple[Extent, ...]
    pass_through: pa.Schema = field(default_factory=lambda: pa.schema([]))
    ignored: tuple[str, ...] = ()
    """Files under the source that are no shards of this format (reported, never read)."""
    num_features: int = 0
    """Length of the feature vector a row; 0 for images."""

    @property
    def num_rows(self) -> int:
        return sum(extent.num_rows for extent in self.extents)

    @property
    def num_bytes(self) -> int:
        return sum(shard.size_bytes for shard in self.shards)


def open_source(source: Source) -> tuple[Store, str]:
    """Return the store at the fixed part of `source.uri`, and the pattern below it ('' = all)."""
    root, pattern = split_glob(source.uri)
    return Store(root, source.storage_options), pattern


def split_glob(uri: str) -> tuple[str, str]:
    """Split a URI before its first segment with a glob character."""
    match = _GLOB_CHARACTERS.search(uri)
    if match is None:
        return uri.rstrip("/") or "/", ""
    cut = uri.rfind("/", 0, match.start())
    return (uri[:cut] or "/", uri[cut + 1 :]) if cut >= 0 else (".", uri)


def list_inputs(source: Source, *, max_extent_rows: int, may_be_empty: bool = False) -> Inputs:
    """List the shards under `source.uri` and measure them.

    Args:
        source: The job's source section.
        max_extent_rows: Row groups are joined to extents of up to about this many rows.
        may_be_empty: A prefix of an object store without any object is an empty folder, not one
            that is missing; there the two look alike.

    Raises:
        JobError: The source cannot be read or has not the columns that the job names.
        InputMissing: There is nothing at `source.uri`, or shards that the job names are missing.
    """
    store, pattern = open_source(source)
    suffixes = _SUFFIXES[source.format]
    root, shards, ignored = (
        _list_shards(store, pattern, suffixes, source, may_be_empty=may_be_empty)
        if source.files is None
        else (store.uri, _named_shards(store, pattern, source), ())
    )
    _require_readable(Store(root, source.storage_options), shards)
    if source.format == "images":
        extents = tuple(
            Extent(s.path, s.size_bytes, s.version, 0, 1, float(s.size_bytes)) for s in shards
        )
        return Inputs(root, shards, extents, ignored=ignored)
    if source.format == "webdataset":
        _check_apart(shards)
        extents = tuple(Extent(s.path, s.size_bytes, s.version, 0, 0, 0.0) for s in shards)
        return Inputs(root, shards, extents, _declare_members(source), ignored)
    extents, declared, num_features = measure_parquet(
        Store(root, source.storage_options), shards, source, max_extent_rows=max_extent_rows
    )
    return Inputs(root, shards, extents, declared, ignored, num_features)


def _require_readable(store: Store, shards: Sequence[StoredFile]) -> None:
    """Read a byte: who may list need not be allowed to read, and better we hear of it now."""
    for shard in shards[:1]:
        try:
            with store.open(shard.path) as handle:
                handle.read(1)
        except (FileNotFoundError, BadBlockError):
            pass  # one that vanished meanwhile is a row's trouble, and so is a bad block
        except OSError as error:
            if not is_bad_block(error):
                raise


def _list_shards(
    store: Store,
    pattern: str,
    suffixes: Sequence[str],
    source: Source,
    *,
    may_be_empty: bool,
) -> tuple[str, tuple[StoredFile, ...], tuple[str, ...]]:
    files = store.list_files()
    root = store.uri
    if not files and not pattern:
        # Not a folder: a single shard is listed through its parent.
        parent, _, name = root.rpartition("/")
        if name and not parent.endswith("/"):
            folder = Store(parent or "/", source.storage_options)
            single = folder.stat(name)
            if single is not None:
                return folder.uri, (single,), ()
    if not files and not (store.is_object_store and may_be_empty):
        require_there(store)
    if pattern:
        from fsspec.utils import glob_translate

        wanted = re.compile(glob_translate(pattern))
        files = [f for f in files if wanted.match(f.path)]
    visible = [f for f in files if not _is_hidden(f.path)]
    shards = tuple(f for f in visible if f.path.lower().endswith(tuple(suffixes)))
    chosen = {f.path for f in shards}
    return root, shards, tuple(f.path for f in visible if f.path not in chosen)


def require_there(store: Store) -> None:
    """Refuse a source that is not there; an empty folder is there.

    Raises:
        InputMissing: There is no such file or folder; in an object store, no object below it.
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
    names = (
        read_lines(source.files, source.storage_options, "source.files")
        if isinstance(source.files, str)
        else list(source.files or ())
    )
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise JobError(f"source.files: {doubled[0]} is named twice")
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        found = list(pool.map(store.stat, names))
    missing = [name for name, file in zip(names, found, strict=True) if file is None]
    if missing:
        raise InputMissing(
            f"source.files: {len(missing)} of {len(names)} are missing, first "
            f"{store.url(missing[0])}; run again when they are there"
        )
    return tuple(file for file in found if file is not None)


def _declare_members(source: Source) -> pa.Schema:
    """Return the columns that members of tars fill.

    Raises:
        JobError: A name is none of an extension, or the image's.
    """
    check_names(source)
    for name in source.pass_through:
        if name != name.lower() or name.startswith(".") or name in source.image_extensions:
            raise JobError(
                f"source.pass_through: {name!r} is no extension of a member beside the image; "
                "write it in lower case, without the dot"
            )
    return pa.schema([pa.field(name, column_type(name)) for name in source.pass_through])


def _check_apart(shards: Sequence[StoredFile]) -> None:
    """Refuse a tar that is also a folder of tars, as object stores allow: row ids could clash."""
    paths = {shard.path for shard in shards}
    for path in paths:
        if any(str(parent) in paths for parent in PurePosixPath(path).parents):
            raise JobError(f"source: {path} lies in a folder that is a tar as well; move it")


def _is_hidden(path: str) -> bool:
    return any(segment.startswith((".", "_")) for segment in path.split("/"))
