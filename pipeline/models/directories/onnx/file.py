"""What an .onnx file says of its inputs and outputs, thus which input and tasks it is for.

Only the file is read, without its external data, and no session of it is made. How texts become
tokens and vectors, files beside it say; `texts.py` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.models.directories.facts import DirectoryFacts, ImageContract, OnnxFile
from pipeline.models.directories.onnx.classes import (
    NAMED,
    activation_of,
    classes_of,
    labels_in_metadata,
    unzip,
)
from pipeline.models.directories.onnx.graph import external_files, name_of, parse_onnx, refusal
from pipeline.models.directories.onnx.tensors import (
    IDS,
    TensorFacts,
    fixed,
    is_column,
    is_of_maps,
    is_vector,
    listed,
    tensor_of,
    type_name_of,
)
from pipeline.models.directories.text.text_facts import TENSORS

if TYPE_CHECKING:
    import onnx

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


def read_onnx_facts(
    path: Path, folder: Path | None = None, *, takes_any: bool = False
) -> DirectoryFacts:
    """Read what a file says of its inputs, outputs and class names.

    It has no transform: the job says it. A file of texts has the tokenizer beside it.

    Args:
        path: The file.
        folder: The copy that `choose_onnx` chose; None: nothing beside the file is read.
        takes_any: It is run by code of the caller's: its inputs need not be one of ours.

    Raises:
        JobError: It is not an ONNX model, or one that is refused, or no input of ours fits it.
    """
    model = parse_onnx(path)
    is_apart = bool(external_files(model))
    zipped = {} if is_apart else unzip(model)
    inputs, outputs = _inputs(path, model), _outputs(path, model)
    input_name, layout = _input_and_layout(path, inputs, takes_any=takes_any)
    floats = [output for output in outputs if output.is_float]
    pooled = [output for output in floats if output.name == _SENTENCE]
    main = [*pooled, *floats, *outputs][0]
    labels = labels_in_metadata(model) or _classes(model, main, zipped)
    ends_in = activation_of(model, main.name)
    file = OnnxFile(
        inputs=tuple(inputs),
        output_names=tuple(output.name for output in outputs),
        output=main.name,
        zipped=tuple(zipped),
        layout=layout,
        batch_size=_batch_size(path, inputs),
        max_tokens=fixed(inputs[0].shape, 1) if input_name == "text" else None,
        has_columns=input_name == "features" and not is_vector(inputs),
    )
    last = main.shape[-1] if main.shape else None
    facts = DirectoryFacts(
        format_name="onnx",
        architecture=_architecture(model),
        input=input_name,
        tasks=_tasks(input_name, main, {output.name for output in outputs}),
        labels=labels,
        embedding_dim=last if isinstance(last, int) and len(main.shape or ()) > 1 else None,
        module=file,
        images=_images(inputs[0], layout) if layout else ImageContract(),
        ends_in=ends_in,
        notes=_notes(path, file, outputs, ends_in, labels)
        + _dropped_notes(path, model, outputs, zipped),
    )
    if input_name != "text" or folder is None:
        return facts
    from pipeline.models.directories.onnx.texts import with_files_beside

    return with_files_beside(folder, facts, main)


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
    names = zipped[main.name] if main.name in zipped else classes_of(model, main.name)
    last = main.shape[-1] if main.shape else None
    is_other = isinstance(last, int) and names is not None and last != len(names)
    return None if is_other else names


def _inputs(path: Path, model: onnx.ModelProto) -> list[TensorFacts]:
    # In old files initializers are listed among the inputs: they have values already.
    given = {tensor.name for tensor in model.graph.initializer}
    given |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    wanted = [value for value in model.graph.input if value.name not in given]
    if not 0 < len(wanted) <= _MAX_ENDS:
        raise refusal(path, f"has {len(wanted)} inputs; {_SAYS}")
    tensors = [tensor_of(value, takes_text=True) for value in wanted]
    for value, tensor in zip(wanted, tensors, strict=True):
        if tensor is None:
            raise refusal(path, f"its input {name_of(value.name)} is no tensor of numbers or texts")
    return [tensor for tensor in tensors if tensor is not None]


def _outputs(path: Path, model: onnx.ModelProto) -> list[TensorFacts]:
    outputs = model.graph.output[: _MAX_ENDS + 1]
    maps = [output for output in outputs if is_of_maps(output)]
    if maps:
        raise refusal(
            path,
            f"output {name_of(maps[0].name)} is a sequence of maps (ZipMap), not a tensor: export "
            'with options={id(model): {"zipmap": False}}',
        )
    numbers = [tensor for output in outputs if (tensor := tensor_of(output)) is not None]
    if not numbers:
        raise refusal(path, "has no output that is a tensor of numbers")
    if len(outputs) > _MAX_ENDS:
        raise refusal(path, f"has more than {_MAX_ENDS} outputs")
    return numbers


def _input_and_layout(
    path: Path, inputs: Sequence[TensorFacts], *, takes_any: bool
) -> tuple[str, str | None]:
    """Return the input that fits, '' if none has to, and of images the order of the axes."""
    first = inputs[0]
    names = {tensor.name for tensor in inputs}
    if "input_ids" in names:
        wrong = [tensor for tensor in inputs if tensor.name not in TENSORS
                 or tensor.rank not in (2, None) or tensor.dtype not in IDS]  # fmt: skip
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


def _images(image: TensorFacts, layout: str) -> ImageContract:
    return ImageContract(*(fixed(image.shape, layout.index(axis)) for axis in "CHW"))


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


def _architecture(model: onnx.ModelProto) -> str:
    name = model.graph.name or model.producer_name or "a graph"
    return name_of(name).strip("'\"")


def _notes(
    path: Path,
    file: OnnxFile,
    outputs: Sequence[TensorFacts],
    ends_in: str | None,
    labels: tuple[str, ...] | None,
) -> tuple[str, ...]:
    lines = [
        f"{path.name}: takes {listed(file.inputs)}",
        f"{path.name}: gives {listed(outputs)}; tasks take {name_of(file.output)}",
    ]
    if file.batch_size is not None:
        lines.append(f"{path.name}: takes exactly {file.batch_size} rows at once")
    if ends_in is not None:
        how = "named probabilities" if ends_in == NAMED else f"a {ends_in} already"
        lines.append(f"{path.name}: its output is {how}")
    if labels is not None:
        lines.append(f"{path.name}: has {len(labels)} class names")
    return tuple(lines)


def _dropped_notes(
    path: Path,
    model: onnx.ModelProto,
    outputs: Sequence[TensorFacts],
    zipped: Mapping[str, tuple[str, ...] | None],
) -> tuple[str, ...]:
    """Say which outputs are read without their ZipMap, and which are not read."""
    lines = [f"{path.name}: {name_of(name)} is read without its ZipMap" for name in zipped]
    read = {output.name for output in outputs}
    lines += [
        f"{path.name}: its output {name_of(output.name)} is {type_name_of(output)}, and is not read"
        for output in model.graph.output
        if output.name not in read
    ]
    return tuple(lines)
