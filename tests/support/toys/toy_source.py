"""A source format of another distribution: a text file with an image in hex per line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from pipeline.core.failures import Failure, Reason
from pipeline.core.figures import READ
from pipeline.core.schema import IMAGE, IMAGE_FIELDS
from pipeline.job.section import Section
from pipeline.job.source import Source
from pipeline.sources.rows import Reader, make_rows
from pipeline.sources.source_format import (
    CountsRows,
    Measured,
    RowIds,
    Rows,
    SourceFormat,
    failed_rows,
)
from pipeline.sources.units import Extent, changed, require_unchanged
from pipeline.storage.store import Store, StoredFile

TOY_FILES = ".hexlines"


class ToyOptions(Section):
    """What a job may say in `source.options`."""

    prefix: str = ""
    """What each line begins with, before the digits."""


class Toy(SourceFormat):
    """Files of lines; counting them takes reading them once."""

    name = "toy"
    suffixes = (TOY_FILES,)
    counts_rows: CountsRows = "footer"
    semantics = 1
    fields: frozenset[str] = frozenset()
    Options: type[Section] | None = ToyOptions

    def row_ids(self, source: Source) -> RowIds:
        return "path#row"

    def measure(
        self, store: Store, shards: Sequence[StoredFile], source: Source, *, max_extent_rows: int
    ) -> Measured:
        extents = tuple(e for s in shards for e in _extents(store, s, max_extent_rows))
        return Measured(extents, fields=IMAGE_FIELDS)

    def read(
        self, reader: Reader, extents: Sequence[Extent], is_wanted: Callable[[int], bool]
    ) -> Iterator[Rows]:
        [extent] = extents
        if extent.reason is not None:
            failure = Failure(extent.reason, READ, extent.message)
            yield Rows(failed_rows(reader, extent, 0, failure))
            return
        require_unchanged(reader.store, extent)
        lines = reader.store.read_bytes(extent.path).decode("ascii").splitlines()
        for number in extent.numbers():
            if number >= len(lines):
                raise changed(reader.store, extent)
            yield Rows(_row(reader, extent.path, number, lines[number]))


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


def _row(reader: Reader, path: str, number: int, line: str) -> pa.Table:
    prefix = ToyOptions.model_validate(reader.source.options).prefix
    data, failure = None, None
    try:
        data = bytes.fromhex(line.removeprefix(prefix))
    except ValueError as error:
        failure = Failure(Reason.DECODE_ERROR, READ, str(error))
    uris = [reader.store.url(path)]
    return make_rows(reader, [f"{path}#{number}"], uris, {IMAGE: [data]}, [failure])
