"""Inputs of tables: a vector per row, or a tensor per column for models that take columns by name.

The source joins the numbers of a row into one vector, in the order of the columns, and keeps texts;
here columns are separated again if the model takes columns. A text reaches the model as its UTF-8
bytes, padded with a byte that UTF-8 does not use.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.arrays import as_array, features_from_arrow
from pipeline.core.errors import JobError
from pipeline.core.figures import Counters
from pipeline.core.schema import FEATURES, TEXT_FEATURE, WIDTHS
from pipeline.core.semantics import SEMANTICS
from pipeline.preprocessing.model_input import (
    FEW_ROWS,
    BatchLimits,
    Columns,
    Cost,
    Input,
    Inputs,
    InputSettings,
    Limits,
    Rows,
    SliceRows,
    Slot,
    TensorColumn,
)
from pipeline.sources.columns.arrow_types import is_list, is_number

if TYPE_CHECKING:
    import torch

    from pipeline.job.job import Job

_BATCH_ROWS = {False: 2_048, True: 16_384}
"""Whether the model is on a GPU -> rows of a batch."""
_BATCH_BYTES = 16 * 2**20
PAD = 0xFF
_TRACED_BYTES = 16


class TableInput(Input):
    """Base of inputs that are rows of a table."""

    name: ClassVar[str] = "features"
    stage_names: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[str] = ""
    cost: ClassVar[Cost] = "row"
    how_to_name: ClassVar[str] = "takes numbers: name their columns with source.features"

    @classmethod
    def slice_rows(cls, job: Job) -> SliceRows:
        """Return half a million rows per slice, with a row group as one unit."""
        return SliceRows(524_288, 524_288, uncounted=32_768, few=8_192, max_units=1)

    @classmethod
    def columns_in(cls, rows: pa.Table, ids: Collection[str]) -> Sequence[Columns]:
        """Return the columns of numbers or lists of numbers."""
        items = {f.name: f.type.value_type if is_list(f.type) else f.type for f in rows.schema}
        names = [name for name, dtype in items.items() if is_number(dtype)]
        return (Columns("features", [name for name in names if name not in ids], takes_all=True),)

    @property
    def semantics(self) -> Mapping[str, int]:
        return {"features": SEMANTICS["features"]}

    def settings(self) -> None:
        return None

    def prepare(
        self, rows: pa.Table, counters: Counters, limits: Limits, num_threads: int = 1
    ) -> pa.Table:
        return rows


def batch_of_numbers(num_numbers: int, *, is_on_gpu: bool) -> BatchLimits:
    """Return the size of a batch for rows of `num_numbers` numbers."""
    rows = _BATCH_ROWS[is_on_gpu]
    while rows > FEW_ROWS[is_on_gpu] and 4 * rows * num_numbers > _BATCH_BYTES:
        rows //= 2
    return BatchLimits(rows)


@dataclass(frozen=True)
class ColumnInput(TableInput):
    """A tensor per column: numbers (B, 1) of float32 or float64, texts uint8 (B, bytes)."""

    columns: tuple[TensorColumn, ...] = ()
    number: str = "float32"
    """The dtype of all numbers in transit."""

    @classmethod
    def of(cls, settings: InputSettings) -> Self:
        return cls(tuple(settings.columns))

    def usual_batch(self, *, is_on_gpu: bool) -> BatchLimits:
        return batch_of_numbers(len(self._numbers), is_on_gpu=is_on_gpu)

    def fitted(self, fields: pa.Schema) -> Self:
        """Check that each column of the source is one number.

        Raises:
            JobError: A column is a list, or several categories.
        """
        if FEATURES not in fields.names:  # there are only texts, or no shard could be read
            return self
        vector = fields.field(FEATURES).type
        if vector.list_size != len(self._numbers):
            raise JobError(
                f"source.features: the model takes one number from each of {len(self._numbers)} "
                f"columns ({', '.join(column.name for column in self._numbers)}), but the columns "
                f"have {vector.list_size}: lists and one_hot categories are several numbers"
            )
        return replace(self, number=str(np.dtype(vector.value_type.to_pandas_dtype())))

    @property
    def _numbers(self) -> tuple[TensorColumn, ...]:
        return tuple(column for column in self.columns if not column.is_text)

    def fields(self) -> list[pa.Field]:
        texts = [column.name for column in self.columns if column.is_text]
        dtype = pa.list_(pa.from_numpy_dtype(self.number), len(self._numbers))
        vector = [pa.field(FEATURES, dtype)] if self._numbers else []
        return [*vector, *(pa.field(TEXT_FEATURE + name, pa.large_string()) for name in texts)]

    def arrays(self, rows: pa.Table) -> Inputs:
        """View numbers as (N, 1), and texts as (N,) read-only arrays of their bytes."""
        vector = features_from_arrow(rows.column(FEATURES)) if self._numbers else np.empty((0, 0))
        places = {column.name: index for index, column in enumerate(self._numbers)}
        return {
            column.name: _bytes_of_texts(rows.column(TEXT_FEATURE + column.name))
            if column.is_text
            else vector[:, places[column.name] : places[column.name] + 1]
            for column in self.columns
        }

    def batches(self, inputs: Inputs, rows: Rows, limits: BatchLimits) -> list[Rows]:
        """Divide rows in order, or by length if there are texts, so that padding is bounded."""
        texts = [inputs[column.name] for column in self.columns if column.is_text]
        if not texts:
            return super().batches(inputs, rows, limits)
        sizes = np.array([max(column[row].size for column in texts) for row in rows], np.int64)
        order = np.argsort(-sizes, kind="stable")
        batches, first = [], 0
        while first < len(order):
            most = _BATCH_BYTES // max(1, int(sizes[order[first]]) * len(texts))
            last = first + max(1, min(most, limits.rows))
            batches.append(rows[order[first:last]])
            first = last
        return batches

    def slots(self, limits: BatchLimits) -> Mapping[str, Slot]:
        has_texts = any(column.is_text for column in self.columns)
        # Batches filled by the length of texts have any number of rows.
        varying = (0,) if has_texts else ()
        return {
            column.name: Slot((limits.rows, _TRACED_BYTES), "uint8", varying=(0, 1))
            if column.is_text
            else Slot((limits.rows, 1), self.number, varying)
            for column in self.columns
        }

    def gather(self, inputs: Inputs, rows: Rows, buffers: Inputs) -> Mapping[str, tuple[int, ...]]:
        """Copy rows into the buffers; pad texts to the longest of these rows."""
        names = [column.name for column in self.columns if column.is_text]
        numbers = {name: values for name, values in inputs.items() if name not in names}
        shapes = {**super().gather(numbers, rows, buffers)}
        for name in names:
            texts = inputs[name][rows]
            shape = (len(rows), max(1, *(text.size for text in texts)))
            batch = buffers[name][: math.prod(shape)].reshape(shape)
            batch[:] = PAD
            for place, text in zip(batch, texts, strict=True):
                place[: text.size] = text
            shapes[name] = shape
        return {column.name: shapes[column.name] for column in self.columns}

    def normaliser(self, dtype: torch.dtype) -> torch.nn.Module:
        from pipeline.preprocessing.normalise import Unchanged

        return Unchanged()


def texts_of(padded: npt.NDArray[np.uint8]) -> npt.NDArray[np.object_]:
    """Return the texts of a batch, (B,), from padded bytes, uint8 (B, bytes)."""
    texts = np.empty(len(padded), object)
    texts[:] = [row.tobytes().rstrip(bytes([PAD])).decode() for row in padded]
    return texts


def _bytes_of_texts(column: pa.ChunkedArray) -> npt.NDArray[np.object_]:
    """View texts, large_string (N,), as arrays of bytes; empty for nulls."""
    array = as_array(column)
    offsets = np.frombuffer(array.buffers()[1] or bytes(8), np.int64)[array.offset :]
    flat = np.frombuffer(array.buffers()[2] or b"", np.uint8)
    texts = np.empty(len(array), object)
    for row, (start, end) in enumerate(itertools.pairwise(offsets[: len(array) + 1].tolist())):
        texts[row] = flat[start:end]
    return texts


@dataclass(frozen=True)
class FeatureInput(TableInput):
    """One tensor `features`, float32 (B, F)."""

    num_features: int = 0
    """F; 0 until the shards are known."""
    has_lists: bool = False
    """Whether a column of the shards is a list."""
    num_taken: int | None = None
    """How many the model takes; None if unknown."""

    @classmethod
    def of(cls, settings: InputSettings) -> TableInput:
        """Make the input; a `ColumnInput` if the model takes columns by name."""
        if settings.columns:
            return ColumnInput.of(settings)
        return cls(num_taken=settings.num_features)

    def usual_batch(self, *, is_on_gpu: bool) -> BatchLimits:
        """Return fewer rows if there are many features, or lists, which may be sequences."""
        if self.has_lists:
            return BatchLimits(FEW_ROWS[is_on_gpu])
        return batch_of_numbers(self.num_features, is_on_gpu=is_on_gpu)

    def fitted(self, fields: pa.Schema) -> Self:
        texts = [n.removeprefix(TEXT_FEATURE) for n in fields.names if n.startswith(TEXT_FEATURE)]
        if texts:
            raise JobError(
                f"source.features: read_as: text, of {', '.join(texts)}, is for a model that takes "
                "columns by name, but this one takes a vector of numbers"
            )
        if FEATURES not in fields.names:  # no shard could be read
            return self
        vector = fields.field(FEATURES)
        if vector.type.value_type != pa.float32():
            raise JobError(
                "source.features: read_as: float64 is for a model that takes columns by name, but "
                "this one takes a vector of float32"
            )
        if self.num_taken not in (None, vector.type.list_size):
            raise JobError(
                f"source.features: the columns have {vector.type.list_size} numbers per row, the "
                f"model takes {self.num_taken}"
            )
        has_lists = WIDTHS in (vector.metadata or {})
        return replace(self, num_features=vector.type.list_size, has_lists=has_lists)

    def fields(self) -> list[pa.Field]:
        return [pa.field(FEATURES, pa.list_(pa.float32(), self.num_features))]

    def arrays(self, rows: pa.Table) -> Inputs:
        return {FEATURES: features_from_arrow(rows.column(FEATURES))}

    def slots(self, limits: BatchLimits) -> Mapping[str, Slot]:
        return {FEATURES: Slot((limits.rows, self.num_features), "float32")}

    def normaliser(self, dtype: torch.dtype) -> torch.nn.Module:
        from pipeline.preprocessing.normalise import Cast

        return Cast(dtype)
