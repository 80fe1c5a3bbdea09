"""Rows of an output, not read yet: what pandas, Polars, DuckDB and Ray Data make of them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pipeline.core.errors import JobError
from pipeline.core.printable import num_of
from pipeline.published.dataset import PublishedParts
from pipeline.report.showing.printed import table_html

_SHOWN = 10


@dataclass(frozen=True)
class Rows:
    """Rows of predictions or of the quarantine, in input order; columns and filter are as asked.

    Each `to_...` reads them; whatever is left out is not read.
    """

    parts: PublishedParts
    columns: tuple[str, ...] | None = None
    filter: pc.Expression | None = None

    def __post_init__(self) -> None:
        if self.filter is not None and not isinstance(self.filter, pc.Expression):
            raise JobError(
                f"filter: {type(self.filter).__name__} is no expression of pyarrow; write "
                'pyarrow.compute.field("score") > 0.5'
            )

    @property
    def dataset(self) -> ds.Dataset:
        """The pyarrow Dataset of all rows that fit the filter, with all columns."""
        dataset = self.parts.dataset()
        return dataset if self.filter is None else dataset.filter(self.filter)

    @property
    def schema(self) -> pa.Schema:
        """The columns and their types.

        Raises:
            JobError: A column that was asked for is none of them.
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
        """Yield the rows batch by batch: one at a time is in memory, and a few are read ahead."""
        yield from self.dataset.to_batches(columns=self._names, batch_readahead=1)

    def head(self, num_rows: int = _SHOWN) -> pa.Table:
        """Return the first rows."""
        return self.dataset.head(num_rows, columns=self._names, batch_size=max(1, num_rows))

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Export the rows batch by batch to what takes Arrow's streams, as Polars and DuckDB do."""
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
        """Return the rows as a DuckDB relation, which reads them when it is asked.

        With a filter they are read at once, for DuckDB takes no dataset that has one.

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
        """Return the rows as a Ray Dataset, which reads the parts on the cluster when it is asked.

        Ray is started if it is not, as always by `ray.data`.
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
