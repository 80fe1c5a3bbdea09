"""Parse an ONNX file without its external data, and open it as onnxruntime does.

An ONNX file is data: a graph of operators. What makes it more, onnxruntime refuses when it opens
it: operators that need a library of their own, functions that call themselves, weights in files
outside the file's own directory. A file is read in a confined process, which it may end.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.models.weights.weights import GIT_LFS

if TYPE_CHECKING:
    import onnx


MAX_FILE_BYTES = (2 << 30) - 1
"""The most that protobuf reads; larger models keep their weights in external data."""
EXTRA = "is not installed: pip install 'batch-inference-pipeline[onnxruntime]'"
_NAME_CHARS = 80
ONNX_LOG_LEVEL = 4
"""Only fatal errors of onnxruntime are logged: its log has raw names from the file, and each error
is raised as well."""


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
    """Read a model without its external data.

    Raises:
        JobError: It is not an ONNX model, or too large.
    """
    size_bytes = path.stat().st_size
    if size_bytes > MAX_FILE_BYTES:
        raise refusal(
            path,
            f"has {size_bytes} bytes, and protobuf reads at most {MAX_FILE_BYTES}: save the "
            "weights as external data beside it",
        )
    with path.open("rb") as file:
        check_is_here(path, file)
    return parse_bytes(path, path.read_bytes())


def parse_bytes(path: Path | str, data: bytes) -> onnx.ModelProto:
    """Parse the content of a file; see `parse_onnx`."""
    try:
        import onnx
    except ImportError as error:
        raise refusal(path, f"{error.name} {EXTRA}") from None
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # noqa: BLE001  # any error of the parser means that it is not a model
        problem = f"is not an ONNX model, or damaged: {type(error).__name__}"
        raise refusal(path, problem) from None
    if not model.ir_version or not model.graph.node:
        raise refusal(path, "is not an ONNX model, or cut off: it has no graph")
    return model


def open_session(source: str | bytes, num_threads: int = 1) -> Any:
    """Open a file, or its bytes, with onnxruntime: float32, the graph as it is in the file.

    Raises:
        Exception: Of the library, as it is.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
    options.log_severity_level = ONNX_LOG_LEVEL
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def external_files(model: onnx.ModelProto) -> dict[str, int]:
    """Return the files with external data as the model names them -> how long they must be."""
    files: dict[str, int] = {}
    for tensor in tensors(model):
        if is_external(tensor):
            # A text that is not UTF-8 is read as bytes.
            where = {entry.key: str(entry.value) for entry in tensor.external_data}
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
    is_odd = any(sign in location for sign in "\\\0:*")  # `*/...` of onnxruntime is not a file
    return not is_odd and not {"", ".", ".."} & set(parts)


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Walk all tensors: of the graph, of functions, of the graphs inside both, and sparse ones."""
    waiting: list[Any] = [model.graph, *model.functions]
    while waiting:
        body = waiting.pop()
        yield from getattr(body, "initializer", ())  # functions have none
        sparse = [*getattr(body, "sparse_initializer", ())]
        for attribute in (a for node in body.node for a in node.attribute):
            waiting += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
            yield from (attribute.t, *attribute.tensors)
            sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
        for tensor in sparse:
            yield from (tensor.values, tensor.indices)
