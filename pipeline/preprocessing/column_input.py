"""Columns: one tensor per column, by its name, for models that take numbers and texts so.

The source joins the numbers to one vector per row, in the order of the columns, and leaves texts as
they are; here they are told apart. A text travels to the model as its UTF-8 bytes, padded with a
byte that UTF-8 does not have.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.arrays import as_array, features_from_arrow
from pipeline.core.errors import JobError
from pipeline.core.schema import FEATURES, TEXT_FEATURE
from pipeline.preprocessing.model_input import (
    Arrays,
    BatchLimits,
    InputSettings,
    Rows,
    Slot,
    TensorColumn,
)
from pipeline.preprocessing.table_input import TableInput, batch_of_numbers

if TYPE_CHECKING:
    import torch

PAD = 0xFF
_TRACED_BYTES = 16
_BATCH_BYTES = 16 << 20


@dataclass(frozen=True)
class ColumnInput(TableInput):
    """A tensor per column: numbers (B, 1) of float32 or float64, texts uint8 (B, bytes)."""

    columns: tuple[TensorColumn, ...] = ()
    number: str = "float32"
    """The type of all numbers, whatever the model makes of them."""

    @classmethod
    def of(cls, settings: InputSettings) -> Self:
        return cls(tuple(settings.columns))

    def usual_batch(self, *, is_on_gpu: bool) -> BatchLimits:
        return batch_of_numbers(len(self._numbers), is_on_gpu=is_on_gpu)

    def fitted(self, fields: pa.Schema) -> Self:
        """Check that the source has the columns as they are taken.

        Raises:
            JobError: A column is a list, or several categories.
        """
        if FEATURES not in fields.names:  # there are texts alone, or no shard could be read
            return self
        vector = fields.field(FEATURES).type
        if vector.list_size != len(self._numbers):
            raise JobError(
                f"source.features: the model takes one number of each of {len(self._numbers)} "
                f"columns ({', '.join(each.name for each in self._numbers)}), and the columns have "
                f"{vector.list_size}: lists, and one_hot categories, are several"
            )
        return replace(self, number=str(np.dtype(vector.value_type.to_pandas_dtype())))

    @property
    def _numbers(self) -> tuple[TensorColumn, ...]:
        return tuple(each for each in self.columns if not each.is_text)

    def fields(self) -> list[pa.Field]:
        texts = [each.name for each in self.columns if each.is_text]
        kind = pa.list_(pa.from_numpy_dtype(self.number), len(self._numbers))
        vector = [pa.field(FEATURES, kind)] if self._numbers else []
        return [*vector, *(pa.field(TEXT_FEATURE + name, pa.large_string()) for name in texts)]

    def arrays(self, rows: pa.Table) -> Arrays:
        """View numbers as (N, 1), and texts as (N,) of arrays: the bytes of each, read-only."""
        vector = features_from_arrow(rows.column(FEATURES)) if self._numbers else np.empty((0, 0))
        places = {each.name: index for index, each in enumerate(self._numbers)}
        return {
            each.name: _bytes_of_texts(rows.column(TEXT_FEATURE + each.name))
            if each.is_text
            else vector[:, places[each.name] : places[each.name] + 1]
            for each in self.columns
        }

    def batches(self, inputs: Arrays, rows: Rows, limits: BatchLimits) -> list[Rows]:
        """Divide rows in order; those with texts by length, so that padding stays bounded."""
        texts = [inputs[each.name] for each in self.columns if each.is_text]
        if not texts:
            return super().batches(inputs, rows, limits)
        sizes = np.array([max(column[row].size for column in texts) for row in rows], np.int64)
        order = np.argsort(-sizes, kind="stable")
        found, first = [], 0
        while first < len(order):
            most = _BATCH_BYTES // max(1, int(sizes[order[first]]) * len(texts))
            last = first + max(1, min(most, limits.rows))
            found.append(rows[order[first:last]])
            first = last
        return found

    def slots(self, limits: BatchLimits) -> Mapping[str, Slot]:
        has_texts = any(each.is_text for each in self.columns)
        # Batches that go by the length of texts have any number of rows.
        varying = (0,) if has_texts else ()
        return {
            each.name: Slot((limits.rows, _TRACED_BYTES), "uint8", varying=(0, 1))
            if each.is_text
            else Slot((limits.rows, 1), self.number, varying)
            for each in self.columns
        }

    def gather(self, inputs: Arrays, rows: Rows, buffers: Arrays) -> Mapping[str, tuple[int, ...]]:
        """Copy rows into the buffers; texts are padded to the longest of these rows."""
        names = [each.name for each in self.columns if each.is_text]
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
        return {each.name: shapes[each.name] for each in self.columns}

    def normaliser(self, dtype: torch.dtype) -> torch.nn.Module:
        from pipeline.preprocessing.normalise import Unchanged

        return Unchanged()


def texts_of(padded: npt.NDArray[np.uint8]) -> npt.NDArray[np.object_]:
    """Return the texts of a batch, (B,), of their padded bytes, uint8 (B, bytes)."""
    found = np.empty(len(padded), object)
    found[:] = [row.tobytes().rstrip(bytes([PAD])).decode() for row in padded]
    return found


def _bytes_of_texts(column: pa.ChunkedArray) -> npt.NDArray[np.object_]:
    """View texts, large_string (N,), as arrays of their bytes; empty for nulls."""
    array = as_array(column)
    offsets = np.frombuffer(array.buffers()[1] or bytes(8), np.int64)[array.offset :]
    flat = np.frombuffer(array.buffers()[2] or b"", np.uint8)
    found = np.empty(len(array), object)
    for row, (start, end) in enumerate(itertools.pairwise(offsets[: len(array) + 1].tolist())):
        found[row] = flat[start:end]
    return found
