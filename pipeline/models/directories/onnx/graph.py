"""Parse an ONNX file without its external data, and refuse what is not to be run.

An ONNX file is data: a graph of operators. What makes it more is refused here by name: operators
that need a library of their own, and weights in files outside the file's own directory.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.models.directories.onnx.walk import bodies, random_operator, tensors
from pipeline.models.weights.weights_file import GIT_LFS

if TYPE_CHECKING:
    import onnx

MAX_FILE_BYTES = (2 << 30) - 1
"""The most that protobuf reads; larger models keep their weights in external data."""
MAX_NODES = 500_000
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Operators that onnxruntime brings; all others need a library of their own."""
_EXTRA = "is not installed: the extra `onnxruntime` brings it"
_NO_MODEL = "is not an ONNX model, or damaged"
_NAME_CHARS = 80
HEAD_BYTES = 64 << 10
# The file is one message of Protocol Buffers (https://protobuf.dev/programming-guides/encoding): a
# list of fields, each a number, how its value is written, and the value; numbers as in onnx.proto.
_VARINT, _FIXED_64, _SIZED, _FIXED_32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED_64: 8, _FIXED_32: 4}
_GRAPH = 7
_MODEL = {1: _VARINT, 5: _VARINT} | dict.fromkeys((2, 3, 4, 6, _GRAPH, 8, 14, 20, 25, 26), _SIZED)
"""Number of a field of a model -> how it is written."""
_OF_GRAPH = frozenset(number << 3 | _SIZED for number in (1, 2, 5, 10, 11, 12, 13, 14, 15, 16))
"""Each field of a graph: its number, and how it is written."""
_MAX_VARINT_BYTES = 10
_MARGIN_BYTES = 3 * _MAX_VARINT_BYTES
"""A field of a model, its size, and a graph's first field begin within so many bytes."""
ONNX_LOG_LEVEL = 4
"""Of onnxruntime, only what ends the process: its log has names of nodes as they are in the file,
and what goes wrong is raised besides."""


def refusal(path: Path | str, found: str) -> JobError:
    """Return the error that says what is wrong with a file.

    A local copy lies in the node cache, whose folders mean nothing to people: its name alone is
    told.
    """
    shown = path.name if isinstance(path, Path) else path
    return JobError(f"model.path = {shown}: {clean_message(found)}")


def name_of(text: str) -> str:
    """Return a name of the file's, fit for a message."""
    return repr(clean_message(text, _NAME_CHARS))


def check_head(path: Path | str, file: BinaryIO, size_bytes: int) -> None:
    """Refuse what is not an ONNX model by its first bytes, so that the rest is not read.

    Raises:
        JobError: It is none; says what it is, if that is known.
    """
    head = file.read(HEAD_BYTES)
    start, found = GIT_LFS
    if head.startswith(start):
        raise refusal(path, found)
    if not can_be_onnx(head, size_bytes):
        raise refusal(path, f"{_NO_MODEL}: begins with {clean_message(repr(head[:12]), 60)}")


def parse_onnx(path: Path) -> onnx.ModelProto:
    """Read a model without its external data, and check all of it but shapes and values.

    Raises:
        JobError: It is not an ONNX model, or refused; says why.
    """
    try:
        import onnx
    except ImportError:
        raise refusal(path, f"onnx {_EXTRA}") from None

    size_bytes = path.stat().st_size
    if size_bytes > MAX_FILE_BYTES:
        raise refusal(
            path,
            f"has {size_bytes} bytes, and protobuf reads at most {MAX_FILE_BYTES}: save the "
            "weights as external data beside it",
        )
    with path.open("rb") as file:
        check_head(path, file, size_bytes)
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # noqa: BLE001  # any error of the parser means that it is not a model
        raise refusal(path, f"{_NO_MODEL}: {type(error).__name__}") from None
    if not model.ir_version or not model.graph.node:
        raise refusal(path, "is not an ONNX model, or cut off: it has no graph")
    _check_operators(path, model)
    _check_external_files(path, model)
    _check_versions(path, model)
    return model


def external_files(model: onnx.ModelProto) -> list[str]:
    """Return the names of the files with external data as the model has them, sorted."""
    return sorted({_locations(tensor).get("location", "") for tensor in _external(model)})


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


def _external(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    return (tensor for tensor in tensors(model) if is_external(tensor))


def _locations(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _check_external_files(path: Path, model: onnx.ModelProto) -> None:
    sizes: dict[str, int] = {}
    for tensor in _external(model):
        where = _locations(tensor)
        location = where.get("location", "")
        what = f"tensor {name_of(tensor.name)} lies in {name_of(location)}"
        if location not in sizes:
            sizes[location] = _size_of(path, location, what)
        try:
            offset, length = int(where.get("offset", 0)), int(where.get("length", 0))
        except ValueError:
            raise refusal(path, f"{what} at an offset that is not a number: damaged?") from None
        if offset < 0 or length < 0 or offset + length > sizes[location]:
            raise refusal(
                path,
                f"{what} up to byte {offset + length}, and that file has {sizes[location]} bytes: "
                "cut off or damaged? copy it again",
            )


def _size_of(path: Path, location: str, what: str) -> int:
    """Return the size of a file of external data in the model's own directory."""
    if not is_inside(location):
        raise refusal(path, f"{what}, outside the directory of the file itself; refused")
    place = path.parent
    for part in PurePosixPath(location).parts:
        place = place / part
        with contextlib.suppress(OSError):
            if stat.S_ISLNK(place.lstat().st_mode):
                raise refusal(path, f"{what}, which is a link; refused: copy the file there")
    if not place.is_file():
        raise refusal(path, f"{what}, and there is no such file beside it")
    return place.stat().st_size


def _check_versions(path: Path, model: onnx.ModelProto) -> None:
    """Refuse a version of the format that the installed onnxruntime does not run.

    It has no list of them: it is given a model of one operator with the same versions.
    """
    try:
        import onnxruntime
    except ImportError:
        raise refusal(path, f"onnxruntime {_EXTRA}") from None
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "probe", ends[:1], ends[1:]
    )
    imports = [each for each in model.opset_import if each.domain in DOMAINS]
    probe = helper.make_model(graph, ir_version=model.ir_version, opset_imports=imports)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(
            probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # the library has no class for it
        told = ", ".join(f"{each.domain or 'ai.onnx'} {each.version}" for each in imports)
        raise refusal(
            path,
            f"is of a version that onnxruntime {onnxruntime.__version__} does not run (IR "
            f"{model.ir_version}, opset {told or 'none'}): install a newer onnxruntime, or export "
            "it with an older opset",
        ) from error


def can_be_onnx(head: bytes, size_bytes: int) -> bool:
    """Tell whether the fields at the start of a file are those of an ONNX model.

    Fields with other numbers are skipped, since later forms of the file may have such; not the
    first one. Of a small file nothing is told: to read it all costs nothing.

    Args:
        head: The first `HEAD_BYTES` of the file.
        size_bytes: Of the whole file.
    """
    at = 0
    while size_bytes > HEAD_BYTES and at < len(head) - _MARGIN_BYTES:
        (tag, after), is_first = _varint(head, at), not at
        number, kind = tag >> 3, tag & 7
        if not number or _MODEL.get(number, None if is_first else kind) != kind:
            return False
        if kind == _VARINT:
            at = _varint(head, after)[1]
        elif kind in _FIXED_BYTES:
            at = after + _FIXED_BYTES[kind]
        elif kind == _SIZED:
            length, begin = _varint(head, after)
            if number == _GRAPH and length and _varint(head, begin)[0] not in _OF_GRAPH:
                return False
            at = begin + length
        else:
            return False
        if at > size_bytes:
            return False
    return True


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Read a number at some place; return it and the place behind it. 0: there is none."""
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        byte = data[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    return 0, at + _MAX_VARINT_BYTES
