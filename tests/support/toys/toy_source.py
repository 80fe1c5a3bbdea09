"""A source format of another distribution: a text file with one image per line, in hex."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import pyarrow as pa

from pipeline.core.failures import Failure, Reason
from pipeline.core.schema import IMAGE, IMAGE_FIELDS
from pipeline.job.section import Section
from pipeline.job.source import Source
from pipeline.sources.columns.base import STAGE
from pipeline.sources.extents import Extent
from pipeline.sources.rows import Reader, changed, make_rows, require_unchanged
from pipeline.sources.source_format import (
    CountedBeforeReading,
    CountsRows,
    Measured,
    RowIds,
    failed_rows,
)
from pipeline.storage.store import Store, StoredFile

TOY_FILES = ".hexlines"


class ToyOptions(Section):
    """What a job may say in `source.options`."""

    prefix: str = ""
    """What each line begins with, before the digits."""


class Toy(CountedBeforeReading):
    """Files of lines; counting them takes reading them once."""

    name = "toy"
    suffixes = (TOY_FILES,)
    counts_rows: CountsRows = "footer"
    semantics = 1
    fields = frozenset[str]()
    Options: type[Section] | None = ToyOptions

    def row_ids(self, source: Source) -> RowIds:
        return "path#row"

    def measure(
        self, store: Store, shards: Sequence[StoredFile], source: Source, *, max_extent_rows: int
    ) -> Measured:
        extents = tuple(e for s in shards for e in _extents(store, s, max_extent_rows))
        return Measured(extents, fields=IMAGE_FIELDS)

    def remeasure(
        self,
        store: Store,
        shards: Sequence[StoredFile],
        source: Source,
        declared: pa.Schema,
        *,
        max_extent_rows: int,
    ) -> Mapping[str, tuple[Extent, ...]]:
        return {s.path: tuple(_extents(store, s, max_extent_rows)) for s in shards}

    def open(self, reader: Reader, extents: Sequence[Extent]) -> ToyStream:
        return ToyStream(reader, extents)


FORMAT = Toy()
POINTS = {"pipeline.sources": {"toy": "toy_source:FORMAT"}}
"""The entry point that brings it, for `toy_package.install`."""


def _extents(store: Store, shard: StoredFile, max_rows: int) -> Iterator[Extent]:
    file = (shard.path, shard.size_bytes, shard.version)
    try:
        lines = store.read_bytes(shard.path).decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        yield Extent(*file, 0, 1, 0.0, Reason.UNREADABLE_SHARD, str(error))
        return
    for first in range(0, len(lines), max_rows):
        yield Extent(*file, first, min(max_rows, len(lines) - first), float(len(lines[first])))


class ToyStream:
    """The rows of extents, one after the other."""

    def __init__(self, reader: Reader, extents: Sequence[Extent]) -> None:
        self._reader = reader
        self._rows = ((e, index) for e in extents for index in range(e.num_rows))
        self._lines: dict[str, list[str]] = {}

    def skip(self, num_rows: int) -> None:
        for _ in islice(self._rows, num_rows):
            pass

    def take(self, num_rows: int) -> pa.Table:
        return pa.concat_tables([self._row(*row) for row in islice(self._rows, num_rows)])

    def close(self) -> None:
        self._lines = {}

    def _row(self, extent: Extent, index: int) -> pa.Table:
        if extent.reason is not None:
            return failed_rows(
                self._reader, extent, index, Failure(extent.reason, STAGE, extent.message)
            )
        store, number = self._reader.store, extent.numbers()[index]
        if extent.path not in self._lines:
            require_unchanged(store, extent)
            self._lines[extent.path] = store.read_bytes(extent.path).decode("ascii").splitlines()
        lines = self._lines[extent.path]
        if number >= len(lines):
            raise changed(store, extent)
        prefix = ToyOptions.model_validate(self._reader.source.options).prefix
        data, failure = None, None
        try:
            data = bytes.fromhex(lines[number].removeprefix(prefix))
        except ValueError as error:
            failure = Failure(Reason.DECODE_ERROR, STAGE, str(error))
        row_id = f"{extent.path}#{number}"
        return make_rows(
            self._reader, [row_id], [store.url(extent.path)], {IMAGE: [data]}, [failure]
        )
