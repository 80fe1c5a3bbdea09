"""What an input is: how a row, as its shard has it, becomes the tensors that a model takes.

Everything after the registry reads these properties, never a name. An input has one or several
tensors, each with a name; a model with one is called with it by position, one with several by name.
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
"""Name -> (N, ...) of the same N rows, in the order in which the model takes them."""


class Limits(NamedTuple):
    """What of a row is refused before it is decoded."""

    max_bytes: int
    max_px: int


class Slot(NamedTuple):
    """What a reused buffer of batches must hold."""

    shape: tuple[int, ...]
    """(B, ...)."""
    dtype: str
    """As numpy and torch both name it: `uint8`, `float32`, `int64`."""


class Input(Protocol):
    """What the model sees of a row. Frozen, plain enough for Ray, and made without torch."""

    name: str
    """The registered one."""
    stage_names: tuple[str, ...]
    """The stages that `prepare` counts, in order; empty if there is nothing to prepare. A process
    that ends in `prepare` has failed in the first of them."""
    takes_transform: bool
    """The job's section `transform` says how; otherwise it must be left out."""

    @classmethod
    def of(cls, transform: TransformSpec | None) -> Self:
        """Make it as a job asks for it; `transform` is None unless `takes_transform`."""
        ...

    @property
    def semantics(self) -> Mapping[str, int]:
        """Return area -> version of the code that decides what the model sees."""
        ...

    @property
    def is_approximate(self) -> bool:
        """Tell whether the model may see other values than the exact ones, which take longer."""
        ...

    def exact(self) -> Self:
        """Return the input that others are compared with."""
        ...

    def settings(self) -> dict[str, Any] | None:
        """Return all that decides what the model sees, as JSON, for fingerprints."""
        ...

    def fitted(self, fields: pa.Schema) -> Self:
        """Return the same with what only the shards tell, as the width of a feature vector.

        Args:
            fields: The columns of the source that hold the input.
        """
        ...

    def fields(self) -> list[pa.Field]:
        """Return the columns that `prepare` leaves, which cross the object store."""
        ...

    def prepare(
        self, rows: pa.Table, counters: Counters, limits: Limits, num_threads: int = 1
    ) -> pa.Table:
        """Turn rows of the source into model input; a row that cannot be gets its error.

        Args:
            rows: `source_schema`; rows with an error stay as they are.
            counters: Gets the entries of `stage_names`.
            limits: What is refused.
            num_threads: How many rows may be worked on at once.

        Returns:
            The same rows with the columns of `fields` in place of the source's.
        """
        ...

    def arrays(self, rows: pa.Table) -> Arrays:
        """View prepared rows, without a copy where a column is one chunk; read-only."""
        ...

    def slots(self, batch_size: int) -> Mapping[str, Slot]:
        """Return the buffers that any batch of so many rows fits in, by the names of `arrays`."""
        ...

    def gather(
        self, inputs: Arrays, rows: npt.NDArray[np.intp], buffers: Arrays
    ) -> Mapping[str, tuple[slice, ...]]:
        """Copy rows of the inputs into buffers of `slots`, the only copy of a batch.

        Returns:
            Name -> where in its buffer the batch is.
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
    """Gather where each row of a tensor has one shape: what `Input.gather` says."""
    batch = slice(0, len(rows))
    for name, values in inputs.items():
        # `clip` writes straight into the buffer; the indices are in range anyway.
        np.take(values, rows, axis=0, out=buffers[name][batch], mode="clip")
    return dict.fromkeys(inputs, (batch,))


def num_rows(inputs: Arrays) -> int:
    """Return how many rows arrays have."""
    return len(next(iter(inputs.values())))


def row_bytes(inputs: Arrays) -> int:
    """Return what one row has in all arrays."""
    return sum(values[:1].nbytes for values in inputs.values())


def take_rows(inputs: Arrays, rows: Any) -> dict[str, npt.NDArray[Any]]:
    """Return some rows of arrays; `rows` is whatever indexes the first axis."""
    return {name: values[rows] for name, values in inputs.items()}


def repeat_rows(inputs: Arrays, count: int) -> dict[str, npt.NDArray[Any]]:
    """Return so many rows, from the first on and again."""
    return {name: np.resize(values, (count, *values.shape[1:])) for name, values in inputs.items()}
