"""Inputs and outputs of an .onnx file: their names, types and shapes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.models.directories.onnx.graph import name_of
from pipeline.preprocessing.input_facts import TEXT

Axis = int | str | None
"""Its length; the name of a dynamic one; None: dynamic without a name."""

FLOATS = ("float32", "float16", "float64")
WHOLE = ("int64", "int32")
NUMBERS = (*FLOATS, *WHOLE, "bool", "int8", "int16", "uint8", "uint16", "uint32", "uint64")
_TENSOR = re.compile(r"tensor\((\w+)\)")
_DTYPES = {"float": "float32", "double": "float64", "string": TEXT}
"""Names of onnxruntime that are others in numpy."""
_SHOWN_ENDS = 12
_MAX_AXIS = 2**31 - 1
"""Of a list in Arrow; a longer axis is none that a row could have."""


class TensorFacts(NamedTuple):
    """An input or an output of the file."""

    name: str
    dtype: str
    """As numpy names it; of texts `text`; of what is no tensor its type in onnxruntime."""
    shape: tuple[Axis, ...] | None
    """None: the file does not say it."""

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOATS

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    def __str__(self) -> str:
        axes = "?" if self.shape is None else ", ".join("?" if a is None else str(a)
                                                        for a in self.shape)  # fmt: skip
        return f"{name_of(self.name)} {self.dtype} ({axes})"


def tensor_of(end: Any) -> TensorFacts:
    """Describe an input or output of a session of onnxruntime."""
    match = _TENSOR.fullmatch(end.type)
    dtype = _DTYPES.get(match[1], match[1]) if match else end.type
    # A scalar has no axes as well as what says none.
    return TensorFacts(end.name, dtype, tuple(map(_axis, end.shape)) or None)


def _axis(length: int | str | None) -> Axis:
    is_known = not isinstance(length, int) or 0 < length <= _MAX_AXIS
    return length if is_known else None


def fixed(shape: Sequence[Axis] | None, axis: int) -> int | None:
    """Return the length of an axis; None if it is dynamic."""
    length = None if shape is None or axis >= len(shape) else shape[axis]
    return length if isinstance(length, int) else None


def is_vector(inputs: Sequence[TensorFacts]) -> bool:
    """Tell whether the only input is a vector of features, instead of one for each column."""
    return len(inputs) == 1 and inputs[0].is_float and inputs[0].rank == 2


def is_column(tensor: TensorFacts) -> bool:
    """Tell whether an input has one value per row, (B, 1) or (B)."""
    is_one = tensor.rank == 1 or (tensor.rank == 2 and fixed(tensor.shape, 1) == 1)
    return is_one and tensor.dtype in (*NUMBERS, TEXT)


def listed(tensors: Sequence[TensorFacts]) -> str:
    left = len(tensors) - _SHOWN_ENDS
    shown = ", ".join(map(str, tensors[:_SHOWN_ENDS]))
    return f"{shown} and {left} others" if left > 0 else shown
