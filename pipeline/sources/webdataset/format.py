"""WebDataset: the members of one key of a tar are one row; only reading a tar counts its rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

import pyarrow as pa

from pipeline.core.errors import JobError
from pipeline.core.semantics import SEMANTICS
from pipeline.job.source import Source
from pipeline.sources.columns.base import encoded_fields
from pipeline.sources.columns.pass_through import check_names
from pipeline.sources.extents import Extent, UncountedPlan
from pipeline.sources.rows import Reader
from pipeline.sources.source_format import CountedByReading, Measured, RowIds
from pipeline.sources.webdataset.rows import column_type
from pipeline.sources.webdataset.stream import TarStream
from pipeline.storage.store import Store, StoredFile


class WebDataset(CountedByReading):
    """Tars, read from their beginning to their end."""

    name = "webdataset"
    # All compressed tars are listed: one that cannot be read must not be skipped silently.
    suffixes = (
        *(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst"),
    )
    semantics = SEMANTICS["webdataset"]
    # Those that are not read cost their rows, with what to do about it.
    kinds = frozenset(["a tar", "gzip", "bzip2", "xz", "zstd"])
    fields = frozenset(["image_extensions", "audio_extensions", "pass_through"])

    def row_ids(self, source: Source) -> RowIds:
        return "key"

    def measure(
        self, store: Store, shards: Sequence[StoredFile], source: Source, *, max_extent_rows: int
    ) -> Measured:
        """Return one extent of unknown rows per tar.

        Raises:
            JobError: Row ids of two tars could be equal, or a pass-through name is no extension.
        """
        _check_apart(shards)
        extents = tuple(Extent(s.path, s.size_bytes, s.version, 0, 0, 0.0) for s in shards)
        return Measured(extents, _declare_members(source), fields=encoded_fields(source))

    def open_slices(
        self, reader: Reader, extents: Sequence[Extent], cut: UncountedPlan
    ) -> TarStream:
        return TarStream(reader, extents, cut)


FORMAT = WebDataset()


def _declare_members(source: Source) -> pa.Schema:
    """Return the columns that members of tars fill.

    Raises:
        JobError: A name is not an extension, or is that of the input.
    """
    check_names(source)
    for name in source.pass_through:
        if name != name.lower() or name.startswith(".") or name in source.extensions:
            raise JobError(
                f"source.pass_through: {name!r} is no extension of a member beside the input; "
                "write it in lower case, without the dot"
            )
    return pa.schema([pa.field(name, column_type(name)) for name in source.pass_through])


def _check_apart(shards: Sequence[StoredFile]) -> None:
    """Refuse a tar that is also a folder of tars, as object stores allow: row ids could clash."""
    paths = {shard.path for shard in shards}
    for path in paths:
        if any(str(parent) in paths for parent in PurePosixPath(path).parents):
            raise JobError(f"source: {path} lies in a folder that is a tar as well; move it")
