"""Facts of an .onnx file: its inputs and outputs, hence the input and the tasks of a job.

onnxruntime opens it, without optimisation, for names, types and shapes; the graph says what scores
and classes are. How texts become tokens and vectors, files beside it say; `texts.py` reads them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.models.directories.facts import (
    FLOATS,
    Axis,
    DirectoryFacts,
    ImageContract,
    OnnxFile,
    TensorFacts,
    fixed,
)
from pipeline.models.directories.onnx.classes import (
    NAMED,
    activation_of,
    classes_of,
    labels_in_metadata,
    unzip,
)
from pipeline.models.directories.onnx.graph import (
    EXTRA,
    external_files,
    name_of,
    open_session,
    parse_onnx,
    refusal,
)
from pipeline.models.directories.onnx.ultralytics import Exported, read_metadata
from pipeline.preprocessing.model_input import TEXT
from pipeline.preprocessing.texts.text_settings import IDS, TENSORS

_OF_DETECTORS = (frozenset(["boxes", "scores"]), frozenset(["logits", "pred_boxes"]))
"""Names of outputs that task `detect` takes as they are."""
_CHANNELS = (3, 1)
_MAX_ENDS = 1024
_SENTENCE = "sentence_embedding"
"""The output of sentence-transformers' exporters that is pooled."""
_SAYS = (
    "an image is one float (B, 3, H, W) or (B, H, W, 3), of gray with 1 for 3, features are one "
    "float (B, F), or an input (B, 1) for each column by its name, a text is input_ids with "
    "attention_mask and token_type_ids; for anything else name a model.factory that returns "
    "pipeline.models.onnx_module.OnnxModule.of(path), and its inputs in source.inputs"
)

WHOLE = ("int64", "int32")
NUMBERS = (*FLOATS, *WHOLE, "bool", "int8", "int16", "uint8", "uint16", "uint32", "uint64")
_TENSOR = re.compile(r"tensor\((\w+)\)")
_DTYPES = {"float": "float32", "double": "float64", "string": TEXT}
"""Names of onnxruntime that are others in numpy."""
_SHOWN_ENDS = 12
_MAX_AXIS = 2**31 - 1
"""Longest list in Arrow; a longer axis counts as dynamic."""


def read_onnx_facts(
    path: Path, folder: Path | None = None, *, takes_any: bool = False
) -> DirectoryFacts:
    """Read what a file says of its inputs, outputs and class names.

    The job says the transform, unless the file is of ultralytics. A file of texts has the tokenizer
    beside it.

    Args:
        folder: The copy that `choose_onnx` chose; None: nothing beside the file is read.
        takes_any: It is run by code of the caller's: its inputs need not be one of ours.

    Raises:
        JobError: It is not an ONNX model, or one that is refused, or no input of ours fits it.
    """
    model = parse_onnx(path)
    # External data lie in a folder, which the bytes of a file do not have.
    zipped = {} if external_files(model) else unzip(model)
    source = bytes(model.SerializeToString()) if zipped else str(path)
    inputs, outputs, metadata, graph_name = _opened(path, source)
    input_name, layout = _input_and_layout(path, inputs, takes_any=takes_any)
    numbers = _numbers(path, outputs)
    floats = [output for output in numbers if output.is_float]
    pooled = [output for output in floats if output.name == _SENTENCE]
    main = [*pooled, *floats, *numbers][0]
    last = main.shape[-1] if main.shape else None
    names = zipped[main.name] if main.name in zipped else classes_of(model, main.name)
    if isinstance(last, int) and last != len(names or ()):
        names = None
    labels = labels_in_metadata(metadata) or names
    images = ImageContract(*(fixed(inputs[0].shape, layout.index(axis)) for axis in "CHW")
                           if layout else ())  # fmt: skip
    exported = read_metadata(metadata, labels, images, numbers) if layout else Exported()
    ends_in = activation_of(model, main.name)
    file = OnnxFile(
        inputs=tuple(inputs),
        output_names=tuple(output.name for output in numbers),
        output=main.name,
        zipped=tuple(zipped),
        layout=layout,
        batch_size=_batch_size(path, inputs),
        max_tokens=fixed(inputs[0].shape, 1) if input_name == "text" else None,
        has_columns=input_name == "features" and not is_vector(inputs),
        no_boxes=exported.no_boxes,
    )
    facts = DirectoryFacts(
        format_name="onnx",
        architecture=name_of(graph_name or "a graph").strip("'\""),
        input=input_name,
        tasks=(
            ("detect", "raw") if exported.head else _tasks(input_name, main, set(file.output_names))
        ),
        labels=labels,
        embedding_dim=last if isinstance(last, int) and len(main.shape or ()) > 1 else None,
        module=file,
        transform=exported.transform,
        images=images,
        head=exported.head,
        ends_in=ends_in,
        notes=_notes(path, file, outputs, ends_in, labels, has_head=bool(exported.head)),
    )
    if input_name != "text" or folder is None:
        return facts
    from pipeline.models.directories.onnx.onnx_texts import with_files_beside

    return with_files_beside(folder, facts, main)


def runnable(path: Path) -> bytes:
    """Return a file whose outputs are tensors, as `read_onnx_facts` described them.

    Raises:
        JobError: The file is refused; see `read_onnx_facts`.
    """
    model = parse_onnx(path)
    unzip(model)
    return bytes(model.SerializeToString())


def _opened(
    path: Path, source: str | bytes
) -> tuple[list[TensorFacts], list[TensorFacts], Mapping[str, str], str]:
    """Return inputs, outputs, metadata and name of the graph, as onnxruntime has them."""
    try:
        session = open_session(source)
        about = session.get_modelmeta()
        ends = (session.get_inputs(), session.get_outputs())
        inputs, outputs = ([tensor_of(end) for end in side] for side in ends)
        metadata, graph_name = about.custom_metadata_map, about.graph_name or about.producer_name
    except ImportError as error:
        raise refusal(path, f"{error.name} {EXTRA}") from None
    except Exception as error:  # noqa: BLE001  # the library's reason is the file's
        reason = f"{error}".partition(f"{path.name} failed:")[2] or f"{error}"
        raise refusal(path, f"onnxruntime does not open it: {reason}") from None
    if not 0 < len(inputs) <= _MAX_ENDS or len(outputs) > _MAX_ENDS:
        raise refusal(path, f"has {len(inputs)} inputs and {len(outputs)} outputs; {_SAYS}")
    return inputs, outputs, metadata, graph_name


def _numbers(path: Path, outputs: Sequence[TensorFacts]) -> list[TensorFacts]:
    """Return the outputs that are tensors of numbers."""
    for output in outputs:
        if "map(" in output.dtype:
            raise refusal(
                path,
                f"output {name_of(output.name)} is a sequence of maps (ZipMap), not a tensor: "
                'export with options={id(model): {"zipmap": False}}',
            )
    numbers = [output for output in outputs if output.dtype in NUMBERS]
    if not numbers:
        raise refusal(path, f"gives {listed(outputs)}; none of these is a tensor of numbers")
    return numbers


def _input_and_layout(
    path: Path, inputs: Sequence[TensorFacts], *, takes_any: bool
) -> tuple[str, str | None]:
    """Return the input that fits, '' if none has to, and of images the order of the axes."""
    first = inputs[0]
    names = {tensor.name for tensor in inputs}
    if IDS in names:
        wrong = [tensor for tensor in inputs if tensor.name not in TENSORS
                 or tensor.rank not in (2, None) or tensor.dtype not in WHOLE]  # fmt: skip
        if not wrong:
            return "text", None
    elif len(inputs) == 1 and first.is_float and first.shape is not None:
        for count in _CHANNELS if first.rank == 4 else ():
            for layout in ("NCHW", "NHWC"):
                if first.shape[layout.index("C")] == count:
                    return "image", layout
        if first.rank == 2:
            return "features", None
    if all(map(is_column, inputs)):
        return "features", None
    if takes_any:
        return "", None
    raise refusal(path, f"takes {listed(inputs)}; {_SAYS}")


def _batch_size(path: Path, inputs: Sequence[TensorFacts]) -> int | None:
    """Return the only number of rows that the file takes; None if it takes any."""
    sizes = {fixed(tensor.shape, 0) for tensor in inputs if tensor.shape}
    if len(sizes) > 1:
        raise refusal(
            path,
            f"takes {', '.join(map(str, inputs))}: axis 0 of all inputs must be the same, a "
            "number or dynamic",
        )
    return next(iter(sizes), None)


def _tasks(input_name: str, output: TensorFacts, names: set[str]) -> tuple[str, ...]:
    if input_name == "image" and any(names >= wanted for wanted in _OF_DETECTORS):
        return ("detect", "raw")
    if not output.is_float:
        return ("raw",)
    if output.rank == 2:
        is_vector = "embed" in output.name.lower() or "pool" in output.name.lower()
        pairs = ("score",) if input_name == "text" else ()
        first = ("embed", "classify") if is_vector else ("classify", "embed")
        if input_name == "features" and output.shape and output.shape[-1] == 1:
            return ("regress", *first, "multilabel", "raw")
        return (*first, "multilabel", "regress", *pairs, "raw")
    if output.rank == 1:
        return ("regress", "raw")
    if output.rank != 3:
        return ("raw",)
    if input_name == "text":
        return ("tokens", "raw") if "logits" in output.name else ("embed", "tokens", "raw")
    return ("raw", "detect") if input_name == "image" else ("raw",)


def _notes(
    path: Path,
    file: OnnxFile,
    outputs: Sequence[TensorFacts],
    ends_in: str | None,
    labels: tuple[str, ...] | None,
    *,
    has_head: bool,
) -> tuple[str, ...]:
    lines = [
        f"takes {listed(file.inputs)}",
        f"gives {listed(outputs)}; tasks take {name_of(file.output)}",
    ]
    if file.batch_size is not None:
        lines.append(f"takes exactly {file.batch_size} rows at once")
    if ends_in is not None:
        how = "named probabilities" if ends_in == NAMED else f"a {ends_in} already"
        lines.append(f"its output is {how}")
    if labels is not None:
        lines.append(f"has {len(labels)} class names")
    if has_head:
        lines.append("letterbox, boxes and least score are those of ultralytics")
    lines += [f"{name_of(name)} is read without its ZipMap" for name in file.zipped]
    lines += [
        f"its output {name_of(output.name)} is {output.dtype}, and is not read"
        for output in outputs
        if output.name not in file.output_names
    ]
    return tuple(f"{path.name}: {line}" for line in lines)


def tensor_of(end: Any) -> TensorFacts:
    """Describe an input or output of a session of onnxruntime."""
    match = _TENSOR.fullmatch(end.type)
    dtype = _DTYPES.get(match[1], match[1]) if match else end.type
    # A scalar and a tensor of unknown shape both have no axes.
    return TensorFacts(end.name, dtype, tuple(map(_axis, end.shape)) or None)


def _axis(length: int | str | None) -> Axis:
    is_known = not isinstance(length, int) or 0 < length <= _MAX_AXIS
    return length if is_known else None


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
