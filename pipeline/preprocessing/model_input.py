"""The protocol of inputs: how a row of a shard becomes the tensors that a model takes.

Code reads these properties, never the name of an input. An input has one or several named tensors;
a model with one tensor is called with it by position, a model with several by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.counters import Counters
from pipeline.preprocessing.transform import TransformSpec

if TYPE_CHECKING:
    import torch

Arrays = Mapping[str, npt.NDArray[Any]]
"""Name -> (N, ...), for the same N rows, in the order in which the model takes them."""


class Limits(NamedTuple):
    """Limits of an encoded row, checked before decoding."""

    max_bytes: int
    max_px: int


class Slot(NamedTuple):
    """Shape and dtype of a reused buffer of batches."""

    shape: tuple[int, ...]
    """(B, ...)."""
    dtype: str
    """As numpy and torch both name it: `uint8`, `float32`, `int64`."""


class Input(Protocol):
    """What the model sees of a row. Frozen, can be pickled, and made without torch."""

    name: str
    """The registered name."""
    stage_names: tuple[str, ...]
    """The stages that `prepare` counts, in order; empty if it does nothing. A crash in `prepare`
    counts as a failure of the first of them."""
    takes_transform: bool
    """Whether the job may have a section `transform`."""

    @classmethod
    def of(cls, transform: TransformSpec | None) -> Self:
        """Make the input of a job; `transform` is None unless `takes_transform`."""
        ...

    @property
    def semantics(self) -> Mapping[str, int]:
        """Return area -> version of the code that decides the model input."""
        ...

    @property
    def is_approximate(self) -> bool:
        """Tell whether prepared values may differ from those of `exact`, which take longer."""
        ...

    def exact(self) -> Self:
        """Return the exact input, which the reference check uses."""
        ...

    def settings(self) -> dict[str, Any] | None:
        """Return all settings that decide the model input, as JSON values, for fingerprints."""
        ...

    def fitted(self, fields: pa.Schema) -> Self:
        """Return this input completed from the shards, for instance the width of a feature vector.

        Args:
            fields: The columns of the source that hold the input.
        """
        ...

    def fields(self) -> list[pa.Field]:
        """Return the columns of prepared rows, which cross the object store."""
        ...

    def prepare(
        self, rows: pa.Table, counters: Counters, limits: Limits, num_threads: int = 1
    ) -> pa.Table:
        """Turn rows of the source into model input; a row that cannot be prepared gets its error.

        Args:
            rows: `source_schema`; rows with an error stay as they are.
            counters: Gets the entries of `stage_names`.
            limits: Limits of an encoded row.
            num_threads: Rows that may be prepared at once.

        Returns:
            The same rows with the columns of `fields` in place of the source's.
        """
        ...

    def arrays(self, rows: pa.Table) -> Arrays:
        """View prepared rows as arrays (N, ...), read-only; copies columns of several chunks."""
        ...

    def slots(self, batch_size: int) -> Mapping[str, Slot]:
        """Return the buffers, by the names of `arrays`, for batches of up to `batch_size` rows."""
        ...

    def gather(
        self, inputs: Arrays, rows: npt.NDArray[np.intp], buffers: Arrays
    ) -> Mapping[str, tuple[slice, ...]]:
        """Copy rows of the inputs into buffers of `slots`: the only copy of a batch.

        Args:
            inputs: The arrays of a slice, each (N, ...).
            rows: (B,) row numbers in the slice.
            buffers: Arrays of the shapes in `slots`, written to.

        Returns:
            Name -> index of the batch in its buffer.
        """
        ...

    def normaliser(self, dtype: torch.dtype) -> torch.nn.Module:
        """Return the module that runs on the device before the model.

        It takes the tensors of a batch in the order of `slots` and returns a tuple of what the
        model is called with, in the same order.
        """
        ...


def gather_rows(
    inputs: Arrays, rows: npt.NDArray[np.intp], buffers: Arrays
) -> Mapping[str, tuple[slice, ...]]:
    """Implement `Input.gather` for tensors whose rows have one shape."""
    batch = slice(0, len(rows))
    for name, values in inputs.items():
        # Mode `clip` writes into the buffer without a temporary; all indices are in range.
        np.take(values, rows, axis=0, out=buffers[name][batch], mode="clip")
    return dict.fromkeys(inputs, (batch,))


def num_rows(inputs: Arrays) -> int:
    """Return N of arrays (N, ...)."""
    return len(next(iter(inputs.values())))


def row_bytes(inputs: Arrays) -> int:
    """Return the bytes of one row in all arrays."""
    return sum(values[:1].nbytes for values in inputs.values())


def take_rows(inputs: Arrays, rows: Any) -> dict[str, npt.NDArray[Any]]:
    """Return some rows of arrays (N, ...); `rows` indexes the first axis."""
    return {name: values[rows] for name, values in inputs.items()}


def repeat_rows(inputs: Arrays, count: int) -> dict[str, npt.NDArray[Any]]:
    """Return `count` rows, repeating the N rows in order."""
    return {name: np.resize(values, (count, *values.shape[1:])) for name, values in inputs.items()}
