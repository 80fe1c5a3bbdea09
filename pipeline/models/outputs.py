"""Outputs of a model: check the declared shape, and make a column of Arrow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

if TYPE_CHECKING:
    import torch


TOKENS, FRAMES = 0, -1
"""Length of an axis that is as long as the row has tokens, or the model makes frames of a clip."""


class OutputError(ValueError):
    """The outputs are not as the job declares; not the fault of a row."""


@dataclass(frozen=True)
class OutputSpec:
    """One named output of a model, with its shape without the batch dimension."""

    name: str
    shape: tuple[int, ...]
    """A first axis of TOKENS or FRAMES has a place for each of them in the row."""

    @property
    def is_of_tokens(self) -> bool:
        """Tell whether its first axis is the tokens of the row."""
        return self.shape[:1] == (TOKENS,)

    @property
    def is_of_frames(self) -> bool:
        """Tell whether its first axis is the frames of a clip."""
        return self.shape[:1] == (FRAMES,)


def in_words(outputs: Sequence[OutputSpec]) -> str:
    """Describe outputs in words."""
    shown = [f"{output.name} {output.shape}" for output in outputs]
    listed = ", ".join(shown).replace("(0,", "(tokens,").replace("(-1,", "(frames,")
    return f"outputs {listed}" if listed else "no outputs of one shape for all rows"


def require(output: Any, shape: tuple[int, ...], declared: str, what: str) -> torch.Tensor:
    """Check the shape of an output.

    Args:
        declared: How the job declares the last dimension, with a placeholder for the number.
        what: What the output is, for the message.

    Raises:
        OutputError: It is not a tensor, or has another shape.
    """
    import torch

    if not isinstance(output, torch.Tensor):
        raise OutputError(f"output is a {type(output).__name__}, expected a tensor {shape}: {what}")
    actual = tuple(output.shape)
    if actual != shape:
        if declared and actual[:-1] == shape[:-1]:
            what = f"the model has {actual[-1]} outputs, {declared.format(shape[-1])}"
        raise OutputError(f"output is {actual}, expected {shape}: {what}")
    return output


def nested_type(shape: tuple[int, ...]) -> pa.DataType:
    dtype = pa.float32()
    for size in reversed(shape):
        dtype = pa.list_(dtype, max(size, -1) or -1)
    return dtype


def nested(values: npt.NDArray[Any], ok: npt.NDArray[np.bool_]) -> pa.Array:
    """Turn (N, a, b, ...) into nested fixed-size lists, null for rows that are not ok."""
    shape = values.shape[1:]
    array = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    if not shape:
        return pa.array(np.ascontiguousarray(values, dtype=np.float32), mask=~ok)
    for size in reversed(shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    assert len(array) == math.prod(shape[:1]) * len(values), "shapes multiply out"
    return pa.FixedSizeListArray.from_arrays(array, shape[0], mask=pa.array(~ok))


def places_of(
    values: npt.NDArray[Any], ok: npt.NDArray[np.bool_], lengths: npt.NDArray[Any]
) -> pa.Array:
    """Turn (N, L, a, ...) into a list of the first places of each row, null for rows not ok.

    Args:
        lengths: int (N,), how many places each row has.
    """
    places = np.arange(values.shape[1]) < np.where(ok, lengths, 0)[:, None]
    entries = nested(values[places], np.ones(int(places.sum()), np.bool_))
    until = np.concatenate([[0], places.sum(axis=1).cumsum()]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(until), entries, mask=pa.array(~ok))
