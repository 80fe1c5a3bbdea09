"""The protocol of inputs: how a row of a shard becomes the tensors that a model takes.

Other code reads the properties of an input, never its name. An input has one or several named
tensors; a model gets a single tensor by position, and several by name.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.arrays import alike_in_shape
from pipeline.core.figures import Counters
from pipeline.core.registry import INPUTS, get
from pipeline.preprocessing.audio.audio_settings import AudioSettings
from pipeline.preprocessing.images.transform import TransformSpec
from pipeline.preprocessing.texts.text_settings import TextSettings
from pipeline.preprocessing.texts.windows import Windows

if TYPE_CHECKING:
    import torch

    from pipeline.job.job import Job
    from pipeline.job.source import Source

Inputs = Mapping[str, npt.NDArray[Any]]
"""Name -> (N, ...), for the same N rows, in the order in which the model takes them. If rows differ
in shape, (N,) of dtype object: an array per row."""
FEW_ROWS = {False: 32, True: 128}
"""Whether it is on a GPU -> rows of a batch of images."""
Rows = npt.NDArray[np.intp]
"""(K,): row numbers in a slice."""


TEXT = "text"
_WIDE = ("float64", "int64", "uint64", "int32", "uint32")
Cost = Literal["row", "text", "image"]
"""In ascending order. `row`: a row of a table takes microseconds; `text`: rows are short, and of
similar length in a batch; `image`: decoding a row takes milliseconds."""


class SliceRows(NamedTuple):
    """The number of rows per slice; `planning.slicing.SliceSizes` has the reasons."""

    near: int = 256
    """Most rows of a slice."""
    small_near: int = 512
    """The same for small rows."""
    bytes_near: int = 0
    """Bytes of a slice between `near` and `small_near` rows; 0: rows up to 16 KiB are small."""
    uncounted: int = 0
    """Rows of a slice if their number is unknown before reading; 0: `near`."""
    few: int = 64
    """Fewest rows of a slice towards the end of the run."""
    has_batches: bool = True
    """Whether batches have a number of rows, so that slices consist of whole batches."""
    weight: float = 1.0
    """Factor by which the bytes of a row count."""
    max_units: int = 4
    """Most units that a row group is cut into."""


class Columns(NamedTuple):
    """A field of the job's `source` that may name an input, and its candidates."""

    field: str
    names: Sequence[str]
    """Columns of a shard that can hold the input."""
    more: Mapping[str, tuple[Any, str]] = MappingProxyType({})
    """Further fields that it needs: field -> value and reason."""
    usual: Collection[str] = ()
    """Common names, by which one of several columns is chosen."""
    takes_all: bool = False
    """Whether the input consists of all these columns, not of one."""


class TensorColumn(NamedTuple):
    """A column that the model takes as a tensor (B, 1) with the column's name."""

    name: str
    dtype: str
    """numpy's name of the dtype of the model's tensor; `TEXT` for texts."""

    @property
    def is_text(self) -> bool:
        return self.dtype == TEXT

    @property
    def is_wide(self) -> bool:
        """Tell whether float32 cannot hold all of its numbers."""
        return self.dtype in _WIDE


class Limits(NamedTuple):
    """Limits of an encoded row, checked before it is decoded."""

    max_bytes: int
    max_px: int


class BatchLimits(NamedTuple):
    """How large a batch may be."""

    rows: int
    tokens: int = 0
    """Most tokens with padding, for inputs with `counts_tokens`; 0: only rows count."""
    pixels: int = 0
    """Most pixels of images that keep their sizes, or samples of clips; 0: only rows count."""

    def halved(self, rows: int) -> BatchLimits:
        """Return the limits after a batch of twice as many rows did not fit into memory."""
        return BatchLimits(
            min(self.rows, rows),
            self.tokens and max(1, self.tokens // 2),
            self.pixels and max(1, self.pixels // 2),
        )


class Slot(NamedTuple):
    """Shape and dtype of a reused buffer of batches."""

    shape: tuple[int, ...]
    """(B, ...) of the largest batch."""
    dtype: str
    """numpy's and torch's common name: `uint8`, `float32`, `int64`."""
    varying: tuple[int, ...] = ()
    """Axes whose size varies between batches, besides a shorter last batch; `shape` is then one
    possible shape. The buffer grows if rows have shapes of their own."""


@dataclass(frozen=True)
class InputSettings:
    """Settings of the input, from the job and its model; each class of input uses its own part."""

    transform: TransformSpec | None = None
    text: TextSettings | None = None
    parts: Mapping[str, str] = field(default_factory=dict)
    """For several inputs: name -> registered name of the input."""
    columns: tuple[TensorColumn, ...] = ()
    """Columns that the model takes as one tensor each, by name; () if it takes one vector."""
    audio: AudioSettings | None = None
    num_features: int | None = None
    """Length of the vector that the model takes; None if unknown."""


class Input(ABC):
    """The model's view of a row. Frozen, can be pickled, and made without torch.

    The defaults suit rows without tokens whose preparation is exact.
    """

    name: ClassVar[str]
    """The registered name."""
    takes: ClassVar[str]
    """Its section of the job file: `transform`, `text`, `audio`, or '' if it has none."""
    cost: ClassVar[Cost]
    """Cost of a row, which decides how many tasks read."""
    how_to_name: ClassVar[str] = "takes the input of an installed package"
    """For messages: what the model takes, and which fields of the job name it."""
    text: TextSettings | None = None
    """How rows become tokens; None if they do not."""

    @classmethod
    @abstractmethod
    def of(cls, settings: InputSettings) -> Input:
        """Make the input of a job; the settings have its part."""

    @classmethod
    def slice_rows(cls, job: Job) -> SliceRows:
        """Return the number of rows per slice if this input is the costliest of the job."""
        return SliceRows()

    @classmethod
    def columns_in(cls, rows: pa.Table, ids: Collection[str]) -> Sequence[Columns]:
        """Return the columns of a shard that could hold it, the likeliest field first.

        Args:
            rows: The first rows, with all columns.
            ids: Columns that identify rows.
        """
        return ()

    @property
    @abstractmethod
    def stage_names(self) -> tuple[str, ...]:
        """Return the stages that `prepare` counts, in order; empty if it does nothing.

        A crash in `prepare` counts as a failure of the first of them.
        """

    @property
    def counts_tokens(self) -> bool:
        """Tell whether batches are filled up to a number of tokens."""
        return self.text is not None

    @property
    def max_tokens(self) -> int | None:
        """Return the most tokens of a row; None if rows have no tokens."""
        return None if self.text is None else self.text.max_tokens

    @property
    @abstractmethod
    def semantics(self) -> Mapping[str, int]:
        """Return area -> version of the code that makes the model input."""

    @property
    def is_approximate(self) -> bool:
        """Tell whether prepared values may differ from those of `exact`, which is slower."""
        return False

    def exact(self) -> Self:
        """Return the exact input, which the reference check uses."""
        return self

    def usual_batch(self, *, is_on_gpu: bool) -> BatchLimits:
        """Return the default size of a batch, which `fitted` may change."""
        return BatchLimits(FEW_ROWS[is_on_gpu])

    @abstractmethod
    def settings(self) -> dict[str, Any] | None:
        """Return all settings that decide the model input as JSON values, for fingerprints."""

    def fitted(self, fields: pa.Schema) -> Self:
        """Return this input completed by facts of the shards, such as the length of a vector.

        Args:
            fields: The source's columns of the input.
        """
        return self

    @abstractmethod
    def fields(self) -> list[pa.Field]:
        """Return the columns of prepared rows."""

    def published_fields(self) -> list[pa.Field]:
        """Return the columns of prepared rows that are published beside the task's columns."""
        return []

    @abstractmethod
    def prepare(
        self, rows: pa.Table, counters: Counters, limits: Limits, num_threads: int = 1
    ) -> pa.Table:
        """Turn rows of the source into model input; a row that cannot be prepared gets its error.

        Args:
            rows: `source_schema`; rows with an error stay unchanged.
            counters: Gets the entries of `stage_names`.
            limits: Limits of an encoded row.
            num_threads: Rows that may be prepared at once.

        Returns:
            The same rows with the columns of `fields` and `published_fields` instead of the
            source's.
        """

    def windows(self, rows: pa.Table) -> Windows | None:
        """Cut prepared rows into the windows that the model sees one by one; None: it sees rows."""
        return None

    @abstractmethod
    def arrays(self, rows: pa.Table) -> Inputs:
        """View prepared rows as arrays (N, ...), read-only; copies columns of several chunks."""

    def batches(self, inputs: Inputs, rows: Rows, limits: BatchLimits) -> list[Rows]:
        """Divide rows into batches, in any order.

        Args:
            inputs: The arrays of a slice, each (N, ...).
            rows: (K,) row numbers in the slice.
            limits: Limits of a batch; a row that exceeds them alone is a batch.
        """
        for values in inputs.values():
            if values.dtype == object:
                return alike_in_shape(values, rows, limits.rows, limits.pixels)
        return [rows[i : i + limits.rows] for i in range(0, len(rows), limits.rows)]

    def padding_trial(self) -> tuple[Inputs, Self, Self] | None:
        """Return a trial of padding: three rows, and two forms of this input without padding.

        One row is short and two are long. The first form has batches of rows of one length, the
        second one row per batch. None if batches are never padded, or always.
        """
        return None

    def lengths(self, inputs: Inputs, rows: Rows) -> npt.NDArray[np.int32] | None:
        """Return the number of tokens per row, (K,); None if rows have no tokens."""
        return None

    @abstractmethod
    def slots(self, limits: BatchLimits) -> Mapping[str, Slot]:
        """Return the buffers of a batch by the names of the model's tensors."""

    def gather(self, inputs: Inputs, rows: Rows, buffers: Inputs) -> Mapping[str, tuple[int, ...]]:
        """Copy rows of the inputs into buffers of `slots`: the only copy of a batch.

        Args:
            inputs: The arrays of a slice, each (N, ...).
            rows: (B,) row numbers in the slice.
            buffers: Name -> (V,), a slot's values in one dimension.

        Returns:
            Name -> shape of the batch, (B, ...), whose values are the first of its buffer.
        """
        shapes = {}
        for name, values in inputs.items():
            is_ragged = values.dtype == object
            row_shape = values[rows[0]].shape if is_ragged else values.shape[1:]
            shapes[name] = shape = (len(rows), *row_shape)
            batch = buffers[name][: math.prod(shape)].reshape(shape)
            if is_ragged:
                for place, value in zip(batch, values[rows], strict=True):
                    place[:] = value
            else:
                # Mode `clip` writes into the buffer without a temporary; all indices are in range.
                np.take(values, rows, axis=0, out=batch, mode="clip")
        return shapes

    @abstractmethod
    def normaliser(self, dtype: torch.dtype) -> torch.nn.Module:
        """Return the module that runs on the device before the model.

        It takes the tensors of a batch in the order of `slots`, and returns a tuple of the model's
        arguments in the same order.
        """

    def num_padded(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Return the tokens of a batch with padding; 0 if rows have no tokens.

        Args:
            shapes: The shapes of its tensors by name.
        """
        return 0


def is_varying(seen: Input) -> bool:
    """Tell whether the shapes of batches vary, as those of texts."""
    return any(slot.varying for slot in seen.slots(BatchLimits(1)).values())


def num_rows(inputs: Inputs) -> int:
    """Return N of arrays (N, ...)."""
    return len(next(iter(inputs.values())))


def bytes_of(inputs: Inputs, rows: Rows) -> int:
    """Return the bytes of some rows in all arrays."""
    return sum(
        sum(value.nbytes for value in values[rows])
        if values.dtype == object
        else len(rows) * values[:1].nbytes
        for values in inputs.values()
    )


def take_rows(inputs: Inputs, rows: Any) -> dict[str, npt.NDArray[Any]]:
    """Return some rows of arrays (N, ...); `rows` indexes the first axis."""
    return {name: values[rows] for name, values in inputs.items()}


def cost_of(source: Source) -> Cost:
    """Return the cost of a row of a job: that of the costliest input.

    Several tables cost as much as images, as their vectors are not read in bulk.
    """
    costs: list[Cost] = [input_type.cost for input_type in _input_types(source)]
    if source.inputs and {*costs} == {"row"}:
        return "image"
    return max(costs, key=get_args(Cost).index)


def slice_rows_of(job: Job) -> SliceRows:
    """Return the number of rows per slice of a job, by its costliest input."""
    cost = cost_of(job.source)
    slice_rows = (
        input_type.slice_rows(job)
        for input_type in _input_types(job.source)
        if input_type.cost == cost
    )
    return max(slice_rows, key=lambda rows: rows.weight, default=SliceRows())


def _input_types(source: Source) -> list[type[Input]]:
    return [get(INPUTS, part.input_name) for part in source.parts.values()]
