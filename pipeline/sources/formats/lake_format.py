"""The base of formats that read lake tables: the live files of one version, as Parquet shards.

The library of a table reads its log or metadata. What a file holds never changes, so the plan names
files, live rows and columns, and needs no table afterwards.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.errors import InputMissing, JobError
from pipeline.core.ranges import Ranges
from pipeline.job.source import Source
from pipeline.sources.formats.parquet import Parquet
from pipeline.sources.formats.table_view import TableFile
from pipeline.storage.skipped import SkipReason
from pipeline.storage.store import Store, StoredFile

_BEYOND_ROWS = 2**62
"""More than the rows of any file."""


class LiveFile(NamedTuple):
    """A data file that a version of a table names."""

    path: str
    """Below the table."""
    given: tuple[str | None, ...]
    """As `TableFile.given`."""
    rows: Ranges | None
    """The rows that are not deleted; None: all."""
    certain: Sequence[str]
    """As `TableFile.certain`."""


@dataclass(frozen=True)
class TableVersion:
    """A version of a table, as its library reads it."""

    title: str
    """For messages: `version 3 of the Delta table s3://lake/rows`."""
    schema: pa.Schema
    """As `TableFile.table`."""
    files: Sequence[LiveFile]
    gone: str
    """Why files of the version may be missing, and what to do."""


class LakeFormat(Parquet):
    """The live rows of a table."""

    is_lake = True
    versions: ClassVar[tuple[str, ...]]
    """The options that choose a version; the first takes what pins it."""

    @abstractmethod
    def read_version(self, store: Store, source: Source) -> TableVersion:
        """Read the version that a job names.

        Raises:
            JobError: There is no such table or version, or it cannot be read.
            InputMissing: The place does not exist.
        """

    def check(self, source: Source) -> None:
        if sum(source.options.get(name) is not None for name in self.versions) > 1:
            *names, last = self.versions
            raise ValueError(f"options: give {', '.join(names)} or {last}")
        if source.files is not None:
            raise ValueError(
                f"files has no effect with format {self.name!r}, whose table names its files"
            )

    def pinned(self, options: Mapping[str, Any], version: int) -> dict[str, Any]:
        """Return options that read the same version of a table again."""
        others = {name: value for name, value in options.items() if name not in self.versions}
        return {**others, self.versions[0]: version}

    def list_table(self, store: Store, source: Source) -> Sequence[StoredFile]:
        """Return the live files of the table at the root of a store.

        Raises:
            JobError: There is no such table or version, or it cannot be read.
            InputMissing: Files of the version are gone.
        """
        version = self.read_version(store, source)
        paths = [file.path for file in version.files]
        if twice := [path for path, count in Counter(paths).items() if count > 1]:
            raise JobError(f"source.uri: {version.title} names {twice[0]} twice; it is damaged")
        there = {file.path: file for file in store.list_chosen(_InTable(paths))}
        if gone := [path for path in paths if path not in there]:
            raise InputMissing(
                f"source.uri: {len(gone)} of {len(paths)} files of {version.title} are missing, "
                f"first {gone[0]}: {version.gone}"
            )
        files = []
        for path, given, rows, certain in version.files:
            of = there[path]
            facts = (path, of.size_bytes, of.version, of.modified, of.ctime_ns)
            file = TableFile(*facts, table=version.schema, given=given, rows=rows, certain=certain)
            files.append(file)
        return sorted(files, key=lambda file: file.path)


@dataclass
class _InTable:
    """Chooses the files that a table names."""

    paths: Sequence[str]
    follow_links: bool = True
    _wanted: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self._wanted = frozenset(self.paths)

    def takes(self, file: StoredFile) -> bool:
        return file.path in self._wanted

    def skip(self, path: str, reason: SkipReason) -> None:
        """Other files are no input, whatever they are."""


def relative_path(store: Store, path: str) -> str | None:
    """Return the path of a data file below its table; None if it is elsewhere."""
    root = store.url().rstrip("/")
    text = path.replace("s3a://", "s3://", 1) if path.startswith("s3a://") else path
    text = text.removeprefix(f"file://{root}/").removeprefix(f"file:{root}/")
    text = text.removeprefix(f"{root}/")
    return None if text.startswith("/") or ":/" in text else text


def live_rows(is_kept: npt.NDArray[np.bool_]) -> Ranges:
    """Return the rows that are not deleted; rows after the end of the mask (N,) are not."""
    *bounds, start = (*Ranges.of_mask(is_kept).bounds, len(is_kept))
    if bounds and bounds[-1] == start:
        start, bounds = bounds[-2], bounds[:-2]
    return Ranges((*bounds, start, _BEYOND_ROWS))
