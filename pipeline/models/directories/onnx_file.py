"""What an .onnx file says of its inputs and outputs, thus which input and tasks it is for.

Only the file is read, without its external data, and no session of it is made.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.directories.described import DirectoryFacts, InputKind
from pipeline.models.directories.onnx_classes import activation_of, classes_of, unzip
from pipeline.models.directories.onnx_graph import external_files, name_of, parse_onnx, refusal

if TYPE_CHECKING:
    import onnx

Axis = int | str | None
"""Its length; the name of a dynamic one; None: dynamic without a name."""

TEXT_NAMES = ("input_ids", "attention_mask", "token_type_ids")
_FLOATS = ("float32", "float16", "float64")
_IDS = ("int64", "int32")
_OF_DETECTORS = (frozenset(["boxes", "scores"]), frozenset(["logits", "pred_boxes"]))
"""Names of outputs that task `detect` takes as they are."""
_CHANNELS = (3, 1)
_MAX_ENDS = 64
_MAX_AXIS = 2**31 - 1
"""Of a list in Arrow; a longer axis is none that a row could have."""
_MAX_LABELS_CHARS = 1 << 20
_LABEL_KEYS = ("labels", "names", "classes", "class_names", "id2label")
"""Where exporters leave class names in the file's metadata."""
_SAYS = (
    "an image is one float (B, 3, H, W) or (B, H, W, 3), of gray with 1 for 3, features are one "
    "float (B, F), a text is input_ids with attention_mask and token_type_ids; for anything else "
    "name a model.factory that returns a module around the file "
    "(pipeline.models.onnx_module.OnnxModule)"
)


@dataclass(frozen=True)
class TensorFacts:
    """An input or an output of the file."""

    name: str
    dtype: str
    """As numpy names it."""
    shape: tuple[Axis, ...] | None
    """None: the file does not say it."""

    @property
    def is_float(self) -> bool:
        return self.dtype in _FLOATS

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    def __str__(self) -> str:
        axes = "?" if self.shape is None else ", ".join("?" if a is None else str(a)
                                                        for a in self.shape)  # fmt: skip
        return f"{name_of(self.name)} {self.dtype} ({axes})"


def read_onnx_facts(path: Path) -> DirectoryFacts:
    """Read what a file says of its inputs, outputs and class names.

    It has neither a transform nor a tokenizer: the job says them.

    Raises:
        JobError: It is not an ONNX model, or one that is refused, or no input of ours fits it.
    """
    model = parse_onnx(path)
    is_apart = bool(external_files(model))
    zipped = {} if is_apart else unzip(model)
    inputs, outputs = _inputs(path, model), _outputs(path, model)
    kind, layout = _kind(path, inputs)
    batch_size = _batch_size(path, inputs)
    main = next((each for each in outputs if each.is_float), outputs[0])
    labels = _labels(model) or _classes(model, main, zipped)
    settings = {
        "inputs": [asdict(each) for each in inputs],
        "outputs": [asdict(each) for each in outputs],
        "output": main.name,
        "zipped": [*zipped],
        "ends_in": activation_of(model, main.name),
        "layout": layout,
        "batch_size": batch_size,
        "image_px": _image_px(inputs[0], layout) if layout else None,
        "num_channels": _fixed(inputs[0].shape, layout.index("C")) if layout else None,
        "max_tokens": _fixed(inputs[0].shape, 1) if kind == "text" else None,
        "num_features": _fixed(inputs[0].shape, 1) if kind == "features" else None,
    }
    last = main.shape[-1] if main.shape else None
    return DirectoryFacts(
        kind="onnx",
        architecture=_architecture(model),
        input=kind,
        tasks=_tasks(kind, main, {each.name for each in outputs}),
        labels=labels,
        transform=None,
        text=None,
        embedding_dim=last if isinstance(last, int) and len(main.shape or ()) > 1 else None,
        settings=json.loads(json.dumps(settings)),
        said=_said(path, inputs, outputs, settings, labels)
        + _said_of_dropped(path, model, outputs, zipped),
    )


def runnable(path: Path) -> bytes:
    """Return a file whose outputs are tensors, as `read_onnx_facts` described them.

    Raises:
        JobError: The file is refused; see `read_onnx_facts`.
    """
    model = parse_onnx(path)
    unzip(model)
    return bytes(model.SerializeToString())


def _classes(
    model: onnx.ModelProto, main: TensorFacts, zipped: Mapping[str, tuple[str, ...] | None]
) -> tuple[str, ...] | None:
    """Return the class names in the graph; None: there are none that fit the output."""
    found = zipped[main.name] if main.name in zipped else classes_of(model, main.name)
    last = main.shape[-1] if main.shape else None
    is_other = isinstance(last, int) and found is not None and last != len(found)
    return None if is_other else found


def _inputs(path: Path, model: onnx.ModelProto) -> list[TensorFacts]:
    # In old files initializers are listed among the inputs: they have values already.
    given = {each.name for each in model.graph.initializer}
    given |= {each.values.name for each in model.graph.sparse_initializer}
    wanted = [each for each in model.graph.input if each.name not in given]
    if not 0 < len(wanted) <= _MAX_ENDS:
        raise refusal(path, f"has {len(wanted)} inputs; {_SAYS}")
    found = [_tensor(each) for each in wanted]
    for value, tensor in zip(wanted, found, strict=True):
        if tensor is None:
            raise refusal(path, f"its input {name_of(value.name)} is not a tensor of numbers")
    return [tensor for tensor in found if tensor is not None]


def _outputs(path: Path, model: onnx.ModelProto) -> list[TensorFacts]:
    outputs = model.graph.output[: _MAX_ENDS + 1]
    maps = [each for each in outputs if _is_of_maps(each)]
    if maps:
        raise refusal(
            path,
            f"output {name_of(maps[0].name)} is a sequence of maps (ZipMap), not a tensor: export "
            'with options={id(model): {"zipmap": False}}',
        )
    numbers = [tensor for each in outputs if (tensor := _tensor(each)) is not None]
    if not numbers:
        raise refusal(path, "has no output that is a tensor of numbers")
    if len(outputs) > _MAX_ENDS:
        raise refusal(path, f"has more than {_MAX_ENDS} outputs")
    return numbers


def _is_of_maps(value: onnx.ValueInfoProto) -> bool:
    kind = value.type
    if kind.WhichOneof("value") == "sequence_type":
        kind = kind.sequence_type.elem_type
    return bool(kind.WhichOneof("value") == "map_type")


def _tensor(value: onnx.ValueInfoProto) -> TensorFacts | None:
    """Describe an input or output; None: it is not a tensor of numbers."""
    from onnx import TensorProto, helper

    if value.type.WhichOneof("value") != "tensor_type":
        return None
    tensor = value.type.tensor_type
    if tensor.elem_type in (TensorProto.UNDEFINED, TensorProto.STRING):
        return None
    try:
        dtype = str(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except KeyError:
        return None
    shape = tuple(map(_axis, tensor.shape.dim)) if tensor.HasField("shape") else None
    return TensorFacts(value.name, dtype, shape)


def _axis(dim: Any) -> Axis:
    if dim.WhichOneof("value") == "dim_value" and 0 < dim.dim_value <= _MAX_AXIS:
        return int(dim.dim_value)
    return str(dim.dim_param) or None


def _fixed(shape: Sequence[Axis] | None, axis: int) -> int | None:
    """Return the length of an axis; None if it is dynamic."""
    found = None if shape is None or axis >= len(shape) else shape[axis]
    return found if isinstance(found, int) else None


def _kind(path: Path, inputs: Sequence[TensorFacts]) -> tuple[InputKind, str | None]:
    """Return the input that fits, and of images the order of the axes."""
    first = inputs[0]
    names = {each.name for each in inputs}
    if "input_ids" in names:
        wrong = [each for each in inputs if each.name not in TEXT_NAMES
                 or each.rank not in (2, None) or each.dtype not in _IDS]  # fmt: skip
        if not wrong:
            return "text", None
    elif len(inputs) == 1 and first.is_float and first.shape is not None:
        for count in _CHANNELS if first.rank == 4 else ():
            for layout in ("NCHW", "NHWC"):
                if first.shape[layout.index("C")] == count:
                    return "image", layout
        if first.rank == 2:
            return "features", None
    raise refusal(path, f"takes {', '.join(map(str, inputs))}; {_SAYS}")


def _image_px(image: TensorFacts, layout: str) -> list[int | None]:
    """Return height and width of the images; None for one that is not fixed."""
    return [_fixed(image.shape, layout.index(axis)) for axis in "HW"]


def _batch_size(path: Path, inputs: Sequence[TensorFacts]) -> int | None:
    """Return the only number of rows that the file takes; None if it takes any."""
    sizes = {_fixed(each.shape, 0) for each in inputs if each.shape}
    if len(sizes) > 1:
        raise refusal(
            path,
            f"takes {', '.join(map(str, inputs))}: axis 0 of all inputs must be the same, a "
            "number or dynamic",
        )
    return next(iter(sizes), None)


def _tasks(kind: InputKind, output: TensorFacts, names: set[str]) -> tuple[str, ...]:
    if kind == "image" and any(names >= wanted for wanted in _OF_DETECTORS):
        return ("detect", "raw")
    if not output.is_float:
        return ("raw",)
    if output.rank == 2:
        is_vector = "embed" in output.name.lower() or "pool" in output.name.lower()
        pairs = ("score",) if kind == "text" else ()
        first = ("embed", "classify") if is_vector else ("classify", "embed")
        if kind == "features" and output.shape and output.shape[-1] == 1:
            return ("regress", *first, "multilabel", "raw")
        return (*first, "multilabel", "regress", *pairs, "raw")
    if output.rank == 1:
        return ("regress", "raw")
    if output.rank != 3:
        return ("raw",)
    return {"text": ("embed", "tokens", "raw"), "image": ("raw", "detect")}.get(kind, ("raw",))


def _labels(model: onnx.ModelProto) -> tuple[str, ...] | None:
    """Return the class names in the metadata; None if there are none that can be read."""
    found = {each.key: each.value for each in model.metadata_props}
    for key in _LABEL_KEYS:
        text = found.get(key, "")
        if text and len(text) <= _MAX_LABELS_CHARS and (names := _names(text)):
            return names
    return None


def _names(text: str) -> tuple[str, ...]:
    """Read a list of names, or a dict of number -> name, as JSON or as Python writes it."""
    values: Any = None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        try:
            values = ast.literal_eval(text)  # literals only: nothing is run
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return ()
    if isinstance(values, dict):
        by_number = {str(key): name for key, name in values.items()}
        values = [by_number.get(str(number)) for number in range(len(by_number))]
    is_list = isinstance(values, list | tuple) and all(isinstance(v, str) for v in values)
    return tuple(values) if is_list else ()


def _architecture(model: onnx.ModelProto) -> str:
    name = model.graph.name or model.producer_name or "a graph"
    return name_of(name).strip("'\"")


def _said(
    path: Path,
    inputs: Sequence[TensorFacts],
    outputs: Sequence[TensorFacts],
    settings: Mapping[str, Any],
    labels: tuple[str, ...] | None,
) -> tuple[str, ...]:
    lines = [
        f"{path.name}: takes {', '.join(map(str, inputs))}",
        f"{path.name}: gives {', '.join(map(str, outputs))}; tasks take "
        f"{name_of(settings['output'])}",
    ]
    if settings["batch_size"] is not None:
        lines.append(f"{path.name}: takes exactly {settings['batch_size']} rows at once")
    if settings["ends_in"] is not None:
        lines.append(f"{path.name}: its output is a {settings['ends_in']} already")
    if labels is not None:
        lines.append(f"{path.name}: has {len(labels)} class names")
    return tuple(lines)


def _said_of_dropped(
    path: Path,
    model: onnx.ModelProto,
    outputs: Sequence[TensorFacts],
    zipped: Mapping[str, tuple[str, ...] | None],
) -> tuple[str, ...]:
    """Say which outputs are read without their ZipMap, and which are not read."""
    lines = [f"{path.name}: {name_of(name)} is read without its ZipMap" for name in zipped]
    read = {each.name for each in outputs}
    lines += [
        f"{path.name}: its output {name_of(each.name)} is {_kind_of(each)}, and is not read"
        for each in model.graph.output
        if each.name not in read
    ]
    return tuple(lines)


def _kind_of(value: onnx.ValueInfoProto) -> str:
    from onnx import TensorProto

    kind = value.type.WhichOneof("value") or "of unknown type"
    if kind == "tensor_type" and value.type.tensor_type.elem_type == TensorProto.STRING:
        return "text"
    return kind.replace("_type", "").replace("_", " ")
