"""Rows of published versions, read lazily: as a pyarrow Dataset, pandas, Polars, DuckDB or Ray.

A dataset has the parts that the manifest names, in input order; no folder is listed. A replaced
version can be read as long as the history has it.
"""

from __future__ import annotations

import importlib
import io
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as pafs
from fsspec import AbstractFileSystem

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest, Part
from pipeline.commit.parts.part_file import open_part
from pipeline.core.errors import JobError
from pipeline.core.hive_paths import hive_values
from pipeline.core.printable import num_of
from pipeline.core.schema import QUARANTINE_SCHEMA
from pipeline.report.showing.printed import table_html
from pipeline.reuse.version_rows import PartPlace
from pipeline.storage.store import Store

OutputFolder = Literal["predictions", "quarantine"]
_FORMAT = ds.ParquetFileFormat(page_checksum_verification=True)
_KEPT: deque[pafs.PyFileSystem] = deque(maxlen=16)
"""File systems of the last datasets. Otherwise a thread of Arrow may free such a Python object
while the interpreter ends, and abort the process."""
_SHOWN = 10


@dataclass(frozen=True)
class PublishedPart:
    """A part, its place, and the columns in its folders."""

    file: PartPlace
    values: Mapping[str, Any]
    """Column -> pyarrow scalar, the value of all its rows."""

    @classmethod
    def of(cls, layout: Layout, manifest: Manifest, part: Part, *, with_key: bool) -> PublishedPart:
        """Return a part of a version.

        Args:
            layout: The partition.
            manifest: The version.
            part: The part.
            with_key: Also return the key of the partition as a column.
        """
        types, folder_values = manifest.partition_columns, hive_values(part.path)
        values = {
            name: pa.scalar(folder_values[name]).cast(pa.type_for_alias(types[name]))
            for name in types
            if name in folder_values  # the part of an empty version has them in its file
        }
        if with_key and layout.partition:
            key, _, value = layout.partition.partition("=")
            values[key] = pa.scalar(value)
        return cls(PartPlace.of(layout, manifest.number, part), values)


@dataclass(frozen=True)
class PublishedParts:
    """Parts of one folder, of one or several versions; can be pickled."""

    store: Store
    folder: OutputFolder
    parts: tuple[PublishedPart, ...]

    @classmethod
    def of(
        cls,
        store: Store,
        versions: Sequence[tuple[Layout, Manifest]],
        folder: OutputFolder,
        *,
        with_key: bool = False,
    ) -> PublishedParts:
        """Return the parts of versions, in order; see `PublishedPart.of`."""
        is_good = folder == "predictions"
        parts = (
            PublishedPart.of(layout, manifest, part, with_key=with_key)
            for layout, manifest in versions
            for part in (manifest.parts if is_good else manifest.quarantine_parts)
        )
        return cls(store, folder, tuple(parts))

    def only(self, numbers: Sequence[int]) -> PublishedParts:
        """Return some of the parts, by their index in `parts`."""
        return replace(self, parts=tuple(self.parts[number] for number in numbers))

    @property
    def num_rows(self) -> int:
        """Rows of all parts, by the manifests."""
        return sum(part.file.part.num_rows for part in self.parts)

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of the last part: those of its file, then those of its folders.

        Raises:
            NotReadable: That part is missing.
        """
        if not self.parts:
            return QUARANTINE_SCHEMA if self.folder == "quarantine" else pa.schema([])
        last = self.parts[-1]
        schema = last.file.find(self.store, self._schema_at)
        for name, value in last.values.items():
            schema = schema.append(pa.field(name, value.type))
        return schema.remove_metadata()

    def _schema_at(self, path: str) -> pa.Schema:
        with open_part(self.store, path) as part:
            return part.schema_arrow

    def dataset(self) -> ds.Dataset:
        """Return the rows as a dataset, which reads only the columns and parts that are needed.

        Reading raises:
            NotReadable: A part is missing, also in the history.
        """
        if not self.parts:
            return ds.dataset(self.schema.empty_table())
        files = pafs.PyFileSystem(_Handler(_Files(self)))
        _KEPT.append(files)
        fragments = [
            _FORMAT.make_fragment(part.file.part.path, files, _expression(part.values))
            for part in self.parts
        ]
        return ds.FileSystemDataset(fragments, self.schema, _FORMAT, files)


def _expression(values: Mapping[str, Any]) -> pc.Expression | None:
    expression: pc.Expression | None = None
    for name, value in values.items():
        field = pc.field(name)
        condition = field == value if value.is_valid else field.is_null()
        expression = condition if expression is None else expression & condition
    return expression


class _Files(AbstractFileSystem):  # type: ignore[misc]
    """The parts as files to read, wherever they lie now."""

    cachable = False

    def __init__(self, parts: PublishedParts) -> None:
        super().__init__()
        self._store = parts.store
        self._files = {part.file.part.path: part.file for part in parts.parts}

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Return name and size, by the manifest."""
        return {"name": path, "size": self._files[path].part.size_bytes, "type": "file"}

    def open(self, path: str, mode: str = "rb", **_: Any) -> BinaryIO:
        """Open a part for reading."""
        return self._files[path].find(self._store, self._store.open)

    def native(self, path: str) -> pa.NativeFile:
        """Open a part for Arrow; on local disk as a file of Arrow's own."""
        return self._files[path].find(self._store, self._native)

    def _native(self, path: str) -> pa.NativeFile:
        file = self._store.open(path)
        if not isinstance(file, io.BufferedReader):
            return pa.PythonFile(file, mode="r")
        with file:
            return pa.OSFile(file.name)


class _Handler(pafs.FSSpecHandler):  # type: ignore[misc]
    """Opens files natively: a thread of Arrow that closes a Python file at exit aborts it."""

    def open_input_file(self, path: str) -> pa.NativeFile:
        return self.fs.native(path)


@dataclass(frozen=True)
class Rows:
    """Rows of predictions or of the quarantine, in input order; each `to_...` reads them.

    Columns and rows that are not asked for are not read.
    """

    parts: PublishedParts
    columns: tuple[str, ...] | None = None
    filter: pc.Expression | None = None

    def __post_init__(self) -> None:
        if self.filter is not None and not isinstance(self.filter, pc.Expression):
            raise JobError(
                f"filter: {type(self.filter).__name__} is not a pyarrow expression; write "
                'pyarrow.compute.field("score") > 0.5'
            )

    @property
    def dataset(self) -> ds.Dataset:
        """The pyarrow Dataset of the rows that pass the filter, with all columns."""
        dataset = self.parts.dataset()
        return dataset if self.filter is None else dataset.filter(self.filter)

    @property
    def schema(self) -> pa.Schema:
        """The columns and their types.

        Raises:
            JobError: There is no such column.
        """
        schema = self.parts.schema
        if self.columns is None:
            return schema
        for name in self.columns:
            if name not in schema.names:
                raise JobError(f"no column {name!r}; there are {', '.join(schema.names)}")
        return pa.schema([schema.field(name) for name in self.columns])

    def __len__(self) -> int:
        return self.parts.num_rows if self.filter is None else int(self.dataset.count_rows())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the rows one by one, as dicts."""
        for batch in self.batches():
            yield from batch.to_pylist()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows batch by batch, with few batches in memory."""
        yield from self.dataset.to_batches(columns=self._names, batch_readahead=1)

    def head(self, num_rows: int = _SHOWN) -> pa.Table:
        """Return the first rows."""
        return self.dataset.head(num_rows, columns=self._names, batch_size=max(1, num_rows))

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Export the rows as an Arrow stream, which Polars and DuckDB take."""
        reader = pa.RecordBatchReader.from_batches(self.schema, self.batches())
        return reader.__arrow_c_stream__(requested_schema)

    def to_table(self) -> pa.Table:
        """Read the rows as a pyarrow Table."""
        return self.dataset.to_table(columns=self._names)

    def to_pandas(self) -> Any:
        """Read the rows as a pandas DataFrame."""
        return self.to_table().to_pandas()

    def to_polars(self) -> Any:
        """Read the rows as a polars DataFrame.

        Raises:
            JobError: polars is not installed.
        """
        return _library("polars").from_arrow(self.to_table())

    def to_duckdb(self) -> Any:
        """Return the rows as a DuckDB relation, which reads them when it is queried.

        With a filter they are read at once, as DuckDB does not take a dataset with one.

        Raises:
            JobError: duckdb is not installed.
        """
        duckdb = _library("duckdb")
        if self.filter is not None:
            return duckdb.from_arrow(self.to_table())
        relation = duckdb.from_arrow(self.dataset)
        if self.columns is None:
            return relation
        quoted = (f'"{name}"' for name in self.schema.names)
        return relation.project(", ".join(quoted))

    def to_ray(self) -> Any:
        """Return the rows as a Ray Dataset, which reads the parts on the cluster when consumed.

        This starts Ray if it is not running, as `ray.data` always does.
        """
        import ray

        numbers = ray.data.from_items(
            [{"part": number} for number in range(len(self.parts.parts))],
            override_num_blocks=max(1, len(self.parts.parts)),
        )
        return numbers.map_batches(self._read, batch_size=1, batch_format="pyarrow")

    def _read(self, numbers: pa.Table) -> pa.Table:
        some = self.parts.only(numbers.column("part").to_pylist())
        return some.dataset().to_table(columns=self._names, filter=self.filter)

    @property
    def _names(self) -> Sequence[str] | None:
        return None if self.columns is None else self.schema.names

    def __repr__(self) -> str:
        try:
            names = ", ".join(self.schema.names)
        except JobError as error:
            names = str(error)
        return f"{num_of(len(self), 'row')} of {self.parts.folder}: {names}"

    def _repr_html_(self) -> str:
        """Return the first rows as a table, for a notebook."""
        first = self.head()
        rows = first.to_pylist()
        return table_html(first.column_names, [[*row.values()] for row in rows], repr(self))


def _library(name: str) -> Any:
    """Import an optional library.

    Raises:
        JobError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise JobError(f"to_{name} needs {name}: pip install {name}") from None
