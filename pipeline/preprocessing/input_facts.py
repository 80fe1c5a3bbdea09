"""What an input says of itself before its shards are known: cost, slices, columns that fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from pipeline.core.registry import INPUTS, get

if TYPE_CHECKING:
    from pipeline.job.job import Job
    from pipeline.job.source import Source
    from pipeline.preprocessing.model_input import Input

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
