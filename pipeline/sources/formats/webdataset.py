"""WebDataset: the members of one key of a tar are one row; only reading a tar counts its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa

from pipeline.core.arrays import Numbers
from pipeline.core.errors import JobError
from pipeline.core.semantics import SEMANTICS
from pipeline.job.source import Source
from pipeline.sources.columns.pass_through import check_names
from pipeline.sources.formats.webdataset_rows import TarRow, TarSpec, column_type, iter_rows
from pipeline.sources.rows import Reader, chosen, make_rows
from pipeline.sources.source_format import CountsRows, Measured, RowIds, SourceFormat
from pipeline.sources.units import Extent
from pipeline.sources.whole_file import open_sequential
from pipeline.storage.store import Store, StoredFile

_ROWS_AT_ONCE, _BYTES_AT_ONCE = 64, 2**22


@dataclass(frozen=True)
class TarRows:
    """Neighbouring rows of a tar."""

    reader: Reader
    extent: Extent
    rows: Sequence[TarRow]

    @property
    def sizes(self) -> Numbers:
        return np.array([row.num_bytes for row in self.rows], np.int64)

    @property
    def is_rest(self) -> bool:
        return any(row.key is None for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: slice | Numbers) -> TarRows:
        return replace(self, rows=chosen(self.rows, rows))

    def to_table(self) -> pa.Table:
        reader, path, rows = self.reader, self.extent.path, self.rows
        url = reader.store.url(path)
        values = {
            field.name: pa.array(
                [row.values[index] if row.values else None for row in rows], field.type
            )
            for index, field in enumerate(reader.pass_through)
        }
        return make_rows(
            reader,
            [path if row.key is None else f"{path}/{row.key}" for row in rows],
            [url + (f"#{row.member}" if row.key else "") for row in rows],
            {reader.fields.names[0]: [row.image for row in rows]},
            [row.failure for row in rows],
            values,
        )


class WebDataset(SourceFormat):
    """Tars, read from their beginning to their end."""

    name = "webdataset"
    counts_rows: CountsRows = "reading"
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

    def read(
        self, reader: Reader, extents: Sequence[Extent], is_wanted: Callable[[int], bool]
    ) -> Iterator[TarRows]:
        [extent] = extents
        source, names = reader.source, tuple(reader.source.passed.values())
        spec = TarSpec(source.extensions, names, source.max_image_bytes, source.encoded.name)
        rows, num_bytes = list[TarRow](), 0
        with open_sequential(reader.store, extent) as handle:
            for row in iter_rows(handle, spec, size_bytes=extent.size_bytes, is_wanted=is_wanted):
                is_full = len(rows) == _ROWS_AT_ONCE or num_bytes >= _BYTES_AT_ONCE
                if rows and (is_full or row.key is None):
                    yield TarRows(reader, extent, rows)
                    rows, num_bytes = [], 0
                rows.append(row)
                num_bytes += row.num_bytes
        if rows:
            yield TarRows(reader, extent, rows)


FORMAT = WebDataset()


def _declare_members(source: Source) -> pa.Schema:
    """Return the columns that members of tars fill.

    Raises:
        JobError: A name is not an extension, or is that of the input.
    """
    check_names(source)
    for name in source.passed.values():
        if name != name.lower() or name.startswith(".") or name in source.extensions:
            raise JobError(
                f"source.pass_through: {name!r} is no extension of a member beside the input; "
                "write it in lower case, without the dot"
            )
    return pa.schema([(name, column_type(member)) for name, member in source.passed.items()])


def _check_apart(shards: Sequence[StoredFile]) -> None:
    """Refuse a tar that is also a folder of tars, as object stores allow: row ids could clash."""
    paths = {shard.path for shard in shards}
    for path in paths:
        if any(str(parent) in paths for parent in PurePosixPath(path).parents):
            raise JobError(f"source: {path} lies in a folder that is a tar as well; move it")
