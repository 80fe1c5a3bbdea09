"""WebDataset: the members of one key of a tar are one row; only reading a tar counts its rows."""

from __future__ import annotations

import bisect
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import PurePosixPath

import pyarrow as pa

from pipeline.core.errors import JobError
from pipeline.core.semantics import SEMANTICS
from pipeline.job.source import Source
from pipeline.sources.columns.pass_through import check_names
from pipeline.sources.extents import Extent, UncountedPlan
from pipeline.sources.rows import Reader, changed, make_rows, require_unchanged
from pipeline.sources.source_format import CountedByReading, Measured, RowIds
from pipeline.sources.webdataset.rows import TarRow, TarSpec, column_type, iter_rows
from pipeline.sources.whole_file import open_sequential
from pipeline.storage.store import Store, StoredFile


class TarStream:
    """The rows of tars in order; one row is read ahead, to know whether more follow."""

    def __init__(self, reader: Reader, extents: Sequence[Extent], cut: UncountedPlan) -> None:
        self._reader = reader
        self._extents = extents
        self._cut = cut
        self._starts = [key.start for key in cut.done]
        self._num_rows = 0
        """Rows that were taken or skipped."""
        self._rows = self._read()
        self._ahead: tuple[Extent, TarRow] | None = None

    def take(self) -> pa.Table:
        """Return the next slice; without rows only if none are left."""
        taken: list[tuple[Extent, TarRow]] = []
        size_bytes = 0
        while len(taken) < self._cut.slice_rows and not self.is_at_end():
            assert self._ahead is not None, "not at the end"
            size_bytes += self._ahead[1].num_bytes
            if taken and size_bytes > self._cut.slice_bytes:
                break
            taken.append(self._ahead)
            self._advance()
        if not self._reader.store.is_object_store:  # an object cannot change under an open file
            for extent in {extent.path: extent for extent, _ in taken}.values():
                self._check_unchanged(extent)
        return self._to_table(taken)

    def skip(self, num_rows: int) -> None:
        """Skip rows that are staged.

        Raises:
            InfraError: Fewer rows are left, so a shard changed since they were staged.
        """
        for _ in range(num_rows):
            if self.is_at_end():
                raise changed(self._reader.store, self._extents[-1])
            self._advance()

    def is_at_end(self) -> bool:
        """Tell whether no rows are left."""
        if self._num_rows == self._cut.max_rows:
            return True
        if self._ahead is None:
            self._ahead = next(self._rows, None)
        return self._ahead is None

    def close(self) -> None:
        """Close the open tar."""
        self._rows.close()
        self._ahead = None

    def _advance(self) -> None:
        self._ahead = None
        self._num_rows += 1

    def _read(self) -> Generator[tuple[Extent, TarRow], None, None]:
        store, source = self._reader.store, self._reader.source
        names = tuple(self._reader.pass_through.names)
        spec = TarSpec(source.extensions, names, source.max_image_bytes, source.encoded.name)
        num_rows = 0
        for extent in self._extents:
            self._check_unchanged(extent)
            with open_sequential(store, extent) as handle:
                wanted = partial(self._is_wanted, num_rows)
                for row in iter_rows(handle, spec, size_bytes=extent.size_bytes, is_wanted=wanted):
                    if self._cut.rows.is_past(num_rows):
                        return
                    # The row that stands for the unreadable rest of a tar is always yielded.
                    if self._cut.rows.number(num_rows) is not None or row.key is None:
                        yield extent, row
                    num_rows += 1

    def _is_wanted(self, rows_before: int, row: int) -> bool:
        """Tell whether a row of the tar that follows `rows_before` rows is in no staged slice."""
        done, number = self._cut.done, self._cut.rows.number(rows_before + row)
        if number is None:
            return False
        index = bisect.bisect_right(self._starts, number) - 1
        return index < 0 or number >= done[index].end

    def _check_unchanged(self, extent: Extent) -> None:
        try:
            require_unchanged(self._reader.store, extent)
        except FileNotFoundError:
            raise changed(self._reader.store, extent) from None

    def _to_table(self, taken: Sequence[tuple[Extent, TarRow]]) -> pa.Table:
        urls = {extent.path: self._reader.store.url(extent.path) for extent, _ in taken}
        values = {
            field.name: pa.array(
                [row.values[index] if row.values else None for _, row in taken], field.type
            )
            for index, field in enumerate(self._reader.pass_through)
        }
        return make_rows(
            self._reader,
            [e.path if row.key is None else f"{e.path}/{row.key}" for e, row in taken],
            [urls[e.path] + (f"#{row.member}" if row.key else "") for e, row in taken],
            {self._reader.fields.names[0]: [row.image for _, row in taken]},
            [row.failure for _, row in taken],
            values,
        )


class WebDataset(CountedByReading):
    """Tars, read from their beginning to their end."""

    name = "webdataset"
    # All compressed tars are listed: one that cannot be read must not be skipped silently.
    suffixes = (
        *(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst"),
    )
    semantics = SEMANTICS["webdataset"]
    # Those that are not read cost their rows, with what to do about it.
    kinds = frozenset(["a tar", "gzip", "zstd"])
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
        return Measured(extents, _declare_members(source), fields=source.encoded.fields)

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
