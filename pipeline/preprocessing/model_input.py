"""The protocol of inputs: how a row of a shard becomes the tensors that a model takes.

Code reads these properties, never the name of an input. An input has one or several named tensors;
a model with one tensor is called with it by position, a model with several by name.
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

if TYPE_CHECKING:
    import torch

    from pipeline.job.job import Job
    from pipeline.job.source import Source

Arrays = Mapping[str, npt.NDArray[Any]]
"""Name -> (N, ...), for the same N rows, in the order in which the model takes them. If rows differ
in shape, (N,) of dtype object: an array per row."""
FEW_ROWS = {False: 32, True: 128}
"""Whether it is on a GPU -> rows of a batch of images."""
Rows = npt.NDArray[np.intp]
"""(K,): row numbers in a slice."""


TEXT = "text"
_WIDE = ("float64", "int64", "uint64", "int32", "uint32")
Cost = Literal["row", "text", "image"]
"""The costliest last. `row`: a row of a table takes microseconds; `text`: rows are short, and alike
in length in a batch; `image`: decoding a row takes milliseconds."""


class SliceRows(NamedTuple):
    """How many rows the slices of an input have; `planning.slicing.SliceSizes` says why."""

    near: int = 256
    """Most rows of a slice."""
    small_near: int = 512
    """The same of rows of few bytes."""
    bytes_near: int = 0
    """Bytes of a slice between `near` and `small_near` rows; 0: rows up to 16 KiB are small."""
    uncounted: int = 0
    """Rows of a slice if only reading counts them; 0: `near`."""
    few: int = 64
    """Fewest rows of a slice towards the end."""
    has_batches: bool = True
    """Whether a batch is a number of rows, so that slices are of whole batches."""
    weight: float = 1.0
    """How many times the bytes of a row count."""
    max_units: int = 4
    """Most units that a row group is cut into."""


class Columns(NamedTuple):
    """A field of the job's `source` that may name an input, and what columns would be named."""

    field: str
    names: Sequence[str]
    """Those of a shard that can hold it."""
    more: Mapping[str, tuple[Any, str]] = MappingProxyType({})
    """Further fields that this needs: field -> its value, and why."""
    usual: Collection[str] = ()
    """Names by which one of several columns is chosen."""
    takes_all: bool = False
    """Whether the input is all of the columns, and not one of them."""


class TensorColumn(NamedTuple):
    """A column that the model takes as a tensor (B, 1) of its name."""

    name: str
    dtype: str
    """Of the model's tensor, as numpy names it; of texts `TEXT`."""

    @property
    def is_text(self) -> bool:
        """Tell whether it is a text."""
        return self.dtype == TEXT

    @property
    def is_wide(self) -> bool:
        """Tell whether float32 cannot hold all of its numbers."""
        return self.dtype in _WIDE


class Limits(NamedTuple):
    """Limits of an encoded row, checked before decoding."""

    max_bytes: int
    max_px: int


class BatchLimits(NamedTuple):
    """How large a batch may be."""

    rows: int
    tokens: int = 0
    """Tokens of all rows with the padding, for inputs with `counts_tokens`; 0: only rows count."""
    pixels: int = 0
    """Pixels of all images that keep their own size, or samples of all clips of sound; 0: only rows
    count."""

    def halved(self, rows: int) -> BatchLimits:
        """Return the limits after a batch of twice so many rows had no room in memory."""
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
    """As numpy and torch both name it: `uint8`, `float32`, `int64`."""
    varying: tuple[int, ...] = ()
    """Axes whose size differs from batch to batch, beside a shorter last batch; `shape` is then one
    of the shapes, and the buffer has as many values. It grows if rows have shapes of their own."""


@dataclass(frozen=True)
class InputSettings:
    """What a job and its model say of the input; each kind of input takes its own part."""

    transform: TransformSpec | None = None
    text: TextSettings | None = None
    parts: Mapping[str, str] = field(default_factory=dict)
    """Several inputs: the name of each -> its registered name."""
    columns: tuple[TensorColumn, ...] = ()
    """The columns that the model takes as a tensor each, by name; () if it takes one vector."""
    audio: AudioSettings | None = None
    num_features: int | None = None
    """How many numbers the model takes as one vector; None: it does not say."""


class Input(ABC):
    """What the model sees of a row. Frozen, can be pickled, and made without torch.

    What is not abstract is as rows without tokens have it, which are prepared in one way.
    """

    name: ClassVar[str]
    """The registered name."""
    takes: ClassVar[str]
    """The section of the job file that it takes, `transform`, `text` or `audio`; '' if it takes
    none."""
    cost: ClassVar[Cost]
    """What takes the time of a row: how many tasks read goes by it."""
    how_to_name: ClassVar[str] = "takes what an installed package prepares"
    """What a model of it takes, and the job's fields that name such columns, for messages."""
    text: TextSettings | None = None
    """How rows become tokens, which may be a part of the model; None if they do not."""

    @classmethod
    @abstractmethod
    def of(cls, settings: InputSettings) -> Input:
        """Make the input of a job; the settings have the part that it takes."""

    @classmethod
    def slice_rows(cls, job: Job) -> SliceRows:
        """Return how many rows slices have where this takes most of the time of a row."""
        return SliceRows()

    @classmethod
    def columns_in(cls, rows: pa.Table, ids: Collection[str]) -> Sequence[Columns]:
        """Return which columns of a shard could hold it, the likeliest field first.

        Args:
            rows: The first rows, with all columns.
            ids: Columns whose values name rows.
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
        """Tell whether rows have lengths of their own: a batch is filled to a number of tokens."""
        return self.text is not None

    @property
    def max_tokens(self) -> int | None:
        """Return the most tokens of a row; None if rows have no tokens."""
        return None if self.text is None else self.text.max_tokens

    @property
    @abstractmethod
    def semantics(self) -> Mapping[str, int]:
        """Return area -> version of the code that decides the model input."""

    @property
    def is_approximate(self) -> bool:
        """Tell whether prepared values may differ from those of `exact`, which take longer."""
        return False

    def exact(self) -> Self:
        """Return the exact input, which the reference check uses."""
        return self

    def usual_batch(self, *, is_on_gpu: bool) -> BatchLimits:
        """Return how large a batch is unless the job says it; ask again when it is fitted."""
        return BatchLimits(FEW_ROWS[is_on_gpu])

    @abstractmethod
    def settings(self) -> dict[str, Any] | None:
        """Return all settings that decide the model input, as JSON values, for fingerprints."""

    def fitted(self, fields: pa.Schema) -> Self:
        """Return this input completed from the shards, for instance the width of a feature vector.

        Args:
            fields: The columns of the source that hold the input.
        """
        return self

    @abstractmethod
    def fields(self) -> list[pa.Field]:
        """Return the columns of prepared rows, which cross the object store."""

    def published_fields(self) -> list[pa.Field]:
        """Return the columns of prepared rows that are published beside the task's columns."""
        return []

    @abstractmethod
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
            The same rows with the columns of `fields` in place of the source's, and with those of
            `published_fields`.
        """

    @abstractmethod
    def arrays(self, rows: pa.Table) -> Arrays:
        """View prepared rows as arrays (N, ...), read-only; copies columns of several chunks."""

    def batches(self, inputs: Arrays, rows: Rows, limits: BatchLimits) -> list[Rows]:
        """Divide rows into batches; results go back to the rows' places, so any order will do.

        Args:
            inputs: The arrays of a slice, each (N, ...).
            rows: (K,) row numbers in the slice.
            limits: How large a batch may be; a row that alone exceeds them is a batch.
        """
        for values in inputs.values():
            if values.dtype == object:
                return alike_in_shape(values, rows, limits.rows, limits.pixels)
        return [rows[i : i + limits.rows] for i in range(0, len(rows), limits.rows)]

    def padding_trial(self) -> tuple[Arrays, Self, Self] | None:
        """Return a short row and two long ones, and this input in batches without padding.

        The first such input has batches of rows of one length, the second one of a row each. None
        if batches are not padded, or cannot be without.
        """
        return None

    def lengths(self, inputs: Arrays, rows: Rows) -> npt.NDArray[np.int32] | None:
        """Return the tokens of each row, (K,), without padding; None if rows have no tokens."""
        return None

    @abstractmethod
    def slots(self, limits: BatchLimits) -> Mapping[str, Slot]:
        """Return the buffers of a batch, by the names of the tensors that the model takes."""

    def gather(self, inputs: Arrays, rows: Rows, buffers: Arrays) -> Mapping[str, tuple[int, ...]]:
        """Copy rows of the inputs into buffers of `slots`: the only copy of a batch.

        Args:
            inputs: The arrays of a slice, each (N, ...).
            rows: (B,) row numbers in the slice.
            buffers: Name -> (V,), the values of a slot in one dimension, written from the start.

        Returns:
            Name -> shape of the batch, (B, ...), whose values are now the first of its buffer.
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

        It takes the tensors of a batch in the order of `slots` and returns a tuple of what the
        model is called with, in the same order.
        """

    def num_padded(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Return the tokens of a batch, padding included; 0 if rows have no tokens.

        Args:
            shapes: The shapes of its tensors, by name.
        """
        return 0


def is_varying(seen: Input) -> bool:
    """Tell whether the shapes of batches differ, as those of texts do."""
    return any(slot.varying for slot in seen.slots(BatchLimits(1)).values())


def num_rows(inputs: Arrays) -> int:
    """Return N of arrays (N, ...)."""
    return len(next(iter(inputs.values())))


def bytes_of(inputs: Arrays, rows: Rows) -> int:
    """Return the bytes of some rows in all arrays."""
    return sum(
        sum(value.nbytes for value in values[rows])
        if values.dtype == object
        else len(rows) * values[:1].nbytes
        for values in inputs.values()
    )


def take_rows(inputs: Arrays, rows: Any) -> dict[str, npt.NDArray[Any]]:
    """Return some rows of arrays (N, ...); `rows` indexes the first axis."""
    return {name: values[rows] for name, values in inputs.items()}


def cost_of(source: Source) -> Cost:
    """Return what takes the time of a row of a job: of several inputs the costliest.

    Several tables cost as images, for their vectors are not read as those of one are.
    """
    costs: list[Cost] = [input_type.cost for input_type in _input_types(source)]
    if source.inputs and {*costs} == {"row"}:
        return "image"
    return max(costs, key=get_args(Cost).index)


def slice_rows_of(job: Job) -> SliceRows:
    """Return how many rows the slices of a job have, by what takes the time of a row."""
    cost = cost_of(job.source)
    slice_rows = (
        input_type.slice_rows(job)
        for input_type in _input_types(job.source)
        if input_type.cost == cost
    )
    return max(slice_rows, key=lambda rows: rows.weight, default=SliceRows())


def _input_types(source: Source) -> list[type[Input]]:
    return [get(INPUTS, part.input_name) for part in source.parts.values()]
