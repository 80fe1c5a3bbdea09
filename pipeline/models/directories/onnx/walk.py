"""Walk an ONNX model: its graph, its functions, and the graphs inside their operators. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

_RANDOM = {
    "": (
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        *("Bernoulli", "Multinomial"),
    ),
    "com.microsoft": ("Sampling",),
}
_RANDOM["ai.onnx"] = _RANDOM[""]
_DROPOUTS = {
    "": ("Dropout",),
    "ai.onnx": ("Dropout",),
    "com.microsoft": ("BiasDropout", "BitmaskDropout", "BitmaskBiasDropout"),
}
"""They do nothing, unless their last input says that the model is in training; that must be absent,
or an initializer of the same graph."""
_TRAINING_INPUT = {"Dropout": 2, "BitmaskDropout": 2, "BiasDropout": 4, "BitmaskBiasDropout": 4}


def bodies(*outer: Any) -> Iterator[Any]:
    """Walk graphs or functions, and the graphs inside them."""
    waiting = [*outer]
    while waiting:
        body = waiting.pop()
        yield body
        for attribute in (a for node in body.node for a in node.attribute):
            waiting += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Walk all tensors: of the graph, of functions, of the graphs inside both, and sparse ones."""
    for body in bodies(model.graph, *model.functions):
        yield from getattr(body, "initializer", ())  # functions have none
        sparse = [*getattr(body, "sparse_initializer", ())]
        for attribute in (a for node in body.node for a in node.attribute):
            yield from (attribute.t, *attribute.tensors)
            sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
        for tensor in sparse:
            yield from (tensor.values, tensor.indices)


def names(model: onnx.ModelProto) -> Iterator[str | bytes]:
    """Walk what the file names; protobuf gives bytes for a name that is not UTF-8."""
    yield from (model.graph.name, model.producer_name)
    for entry in model.metadata_props:
        yield from (entry.key, entry.value)
    for value in (*model.graph.input, *model.graph.output):
        yield value.name
        yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)
    for body in bodies(model.graph, *model.functions):
        for node in body.node:
            yield from (node.op_type, node.domain, node.name, *node.input, *node.output)
            yield from (attribute.name for attribute in node.attribute)
    for tensor in tensors(model):
        yield tensor.name
        for entry in tensor.external_data:
            yield from (entry.key, entry.value)


def random_operator(model: onnx.ModelProto) -> onnx.NodeProto | None:
    """Return an operator that draws random numbers; None: all outputs follow from the inputs.

    A seed does not help: it is set once for a session, whose batches then draw one after the other.
    """
    for body in bodies(model.graph, *model.functions):
        off = {each.name for each in getattr(body, "initializer", ()) if _is_false(each)}
        node: onnx.NodeProto
        for node in body.node:
            if node.op_type in _RANDOM.get(node.domain, ()):
                return node
            if node.op_type not in _DROPOUTS.get(node.domain, ()):
                continue
            at = _TRAINING_INPUT[node.op_type]
            switch = node.input[at] if at < len(node.input) else ""
            if switch and switch not in off:
                return node
    return None


def _is_false(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type != tensor.BOOL or tensor.external_data:
        return False
    return bool(tensor.raw_data or tensor.int32_data) and not (
        any(tensor.raw_data) or any(tensor.int32_data)
    )
