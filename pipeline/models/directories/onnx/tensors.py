"""Inputs and outputs of an .onnx file: their names, types and shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.models.directories.onnx.graph import name_of
from pipeline.preprocessing.input_facts import TEXT

if TYPE_CHECKING:
    import onnx

Axis = int | str | None
"""Its length; the name of a dynamic one; None: dynamic without a name."""

FLOATS = ("float32", "float16", "float64")
IDS = ("int64", "int32")
_OF_COLUMNS = (
    *(*FLOATS, *IDS, TEXT, "bool"),
    *("int8", "int16", "uint8", "uint16", "uint32", "uint64"),
)
"""What a column can be that is an input of its own."""
_SHOWN_ENDS = 12
_MAX_AXIS = 2**31 - 1
"""Of a list in Arrow; a longer axis is none that a row could have."""


class TensorFacts(NamedTuple):
    """An input or an output of the file."""

    name: str
    dtype: str
    """As numpy names it; of texts `text`."""
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


def is_of_maps(value: onnx.ValueInfoProto) -> bool:
    value_type = value.type
    if value_type.WhichOneof("value") == "sequence_type":
        value_type = value_type.sequence_type.elem_type
    return bool(value_type.WhichOneof("value") == "map_type")


def tensor_of(value: onnx.ValueInfoProto, *, takes_text: bool = False) -> TensorFacts | None:
    """Describe an input or output; None: it is not a tensor of numbers, or of texts if taken."""
    from onnx import TensorProto, helper

    if value.type.WhichOneof("value") != "tensor_type":
        return None
    tensor = value.type.tensor_type
    shape = tuple(map(_axis, tensor.shape.dim)) if tensor.HasField("shape") else None
    if takes_text and tensor.elem_type == TensorProto.STRING:
        return TensorFacts(value.name, TEXT, shape)
    if tensor.elem_type in (TensorProto.UNDEFINED, TensorProto.STRING):
        return None
    try:
        dtype = str(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except KeyError:
        return None
    return TensorFacts(value.name, dtype, shape)


def _axis(dim: Any) -> Axis:
    if dim.WhichOneof("value") == "dim_value" and 0 < dim.dim_value <= _MAX_AXIS:
        return int(dim.dim_value)
    return str(dim.dim_param) or None


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
    return is_one and tensor.dtype in _OF_COLUMNS


def listed(tensors: Sequence[TensorFacts]) -> str:
    left = len(tensors) - _SHOWN_ENDS
    shown = ", ".join(map(str, tensors[:_SHOWN_ENDS]))
    return f"{shown} and {left} others" if left > 0 else shown


def type_name_of(value: onnx.ValueInfoProto) -> str:
    from onnx import TensorProto

    type_name = value.type.WhichOneof("value") or "of unknown type"
    if type_name == "tensor_type" and value.type.tensor_type.elem_type == TensorProto.STRING:
        return "text"
    return type_name.replace("_type", "").replace("_", " ")
