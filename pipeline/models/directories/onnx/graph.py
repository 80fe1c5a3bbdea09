"""Parse an ONNX file without its external data, and refuse what is not to be run.

An ONNX file is data: a graph of operators. What makes it more is refused here by name: operators
that need a library of their own, and weights in files outside the file's own directory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.models.weights.weights_file import GIT_LFS

if TYPE_CHECKING:
    import onnx


MAX_FILE_BYTES = (2 << 30) - 1
"""The most that protobuf reads; larger models keep their weights in external data."""
MAX_NODES = 500_000
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Operators that onnxruntime brings; all others need a library of their own."""
_EXTRA = "is not installed: pip install 'batch-inference-pipeline[onnxruntime]'"
_NO_MODEL = "is not an ONNX model, or damaged"
_NAME_CHARS = 80
ONNX_LOG_LEVEL = 4
"""Of onnxruntime, only what ends the process: its log has names of nodes as they are in the file,
and what goes wrong is raised besides."""
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


def refusal(path: Path | str, problem: str) -> JobError:
    """Return the error that says what is wrong with a file.

    A local copy lies in the node cache, whose folders mean nothing to people: its name alone is
    shown.
    """
    shown = path.name if isinstance(path, Path) else path
    return JobError(f"model.path = {shown}: {clean_message(problem)}")


def name_of(text: str) -> str:
    """Return a name of the file's, fit for a message."""
    return repr(clean_message(text, _NAME_CHARS))


def check_is_here(path: Path | str, file: BinaryIO) -> None:
    """Refuse the pointer that Git LFS leaves where a file was not fetched.

    Raises:
        JobError: It is one.
    """
    start, problem = GIT_LFS
    if file.read(len(start)) == start:
        raise refusal(path, problem)


def parse_onnx(path: Path) -> onnx.ModelProto:
    """Read a model without its external data, and check its operators.

    What else may be wrong with it, onnxruntime says when it opens it: versions that it does not
    run, and external data that is damaged or outside the file's own directory.

    Raises:
        JobError: It is not an ONNX model, or refused; says why.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise refusal(path, f"{error.name} {_EXTRA}") from None

    size_bytes = path.stat().st_size
    if size_bytes > MAX_FILE_BYTES:
        raise refusal(
            path,
            f"has {size_bytes} bytes, and protobuf reads at most {MAX_FILE_BYTES}: save the "
            "weights as external data beside it",
        )
    with path.open("rb") as file:
        check_is_here(path, file)
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # noqa: BLE001  # any error of the parser means that it is not a model
        raise refusal(path, f"{_NO_MODEL}: {type(error).__name__}") from None
    if not model.ir_version or not model.graph.node:
        raise refusal(path, "is not an ONNX model, or cut off: it has no graph")
    if odd := next((name for name in names(model) if isinstance(name, bytes)), None):
        raise refusal(path, f"has a name that is not UTF-8: {odd[:_NAME_CHARS]!r}")
    _check_operators(path, model)
    return model


def external_files(model: onnx.ModelProto) -> dict[str, int]:
    """Return the files with external data as the model names them -> how long they must be."""
    files: dict[str, int] = {}
    for tensor in tensors(model):
        if is_external(tensor):
            where = {entry.key: entry.value for entry in tensor.external_data}
            numbers = [where.get(key, "") for key in ("offset", "length")]
            end = sum(int(number) for number in numbers if number.isdecimal())
            location = where.get("location", "")
            files[location] = max(end, files.get(location, 0))
    return dict(sorted(files.items()))


def is_external(tensor: onnx.TensorProto) -> bool:
    """Tell whether a tensor's values lie in another file."""
    return bool(tensor.external_data) or tensor.data_location == tensor.EXTERNAL


def is_inside(location: str) -> bool:
    """Tell whether a location of external data can lie in the directory of the file itself."""
    parts = location.split("/")
    is_odd = "\\" in location or "\0" in location or ":" in location
    return not is_odd and not {"", ".", ".."} & set(parts)


def _check_operators(path: Path, model: onnx.ModelProto) -> None:
    functions = {(f.domain, f.name): f for f in model.functions}
    num_nodes = 0
    for body in bodies(model.graph, *model.functions):
        num_nodes += len(body.node)
        if num_nodes > MAX_NODES:
            raise refusal(path, f"has more than {MAX_NODES} operators")
        for node in body.node:
            if node.domain not in DOMAINS and (node.domain, node.op_type) not in functions:
                raise refusal(
                    path,
                    f"has the custom operator {name_of(node.op_type)} of domain "
                    f"{name_of(node.domain)}, which needs a library of its own; only the operators "
                    f"of {', '.join(DOMAINS[1:])} are run",
                )
    _check_calls(path, functions)
    if (node := random_operator(model)) is not None:
        raise refusal(
            path,
            f"has the random operator {node.op_type} (node {name_of(node.name or node.output[0])}"
            "), so the same row would get another prediction each time, whatever its seed: export "
            "the model for inference (torch: model.eval() first), or without the operator",
        )


def _check_calls(path: Path, functions: dict[tuple[str, str], Any]) -> None:
    """Refuse functions that call themselves, directly or through others."""
    calls = {
        key: {
            (node.domain, node.op_type)
            for body in bodies(function)
            for node in body.node
            if (node.domain, node.op_type) in functions
        }
        for key, function in functions.items()
    }
    while ready := [key for key, called in calls.items() if not called]:
        calls = {key: called.difference(ready) for key, called in calls.items() if key not in ready}
    if calls:
        name = min(calls)[1]
        raise refusal(path, f"its function {name_of(name)} calls itself, so it has no end")


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
        off = {tensor.name for tensor in getattr(body, "initializer", ()) if _is_false(tensor)}
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
