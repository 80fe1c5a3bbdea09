"""Small .onnx files with seeded weights: images, features and texts."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NUM_LABELS, NUM_FEATURES, VOCABULARY, WIDTH = 5, 6, 32, 8
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
OPSET, IR_VERSION = 17, 8


def value(name: str, element_type: int, shape: Sequence[int | str | None] | None) -> Any:
    return helper.make_tensor_value_info(name, element_type, shape)


def weights(name: str, *shape: int, seed: int = 0) -> Any:
    numbers = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return numpy_helper.from_array(numbers, name)


def make_model(
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    initializers: Sequence[Any] = (),
    *,
    functions: Sequence[Any] = (),
    opsets: Sequence[tuple[str, int]] = (("", OPSET),),
    metadata: dict[str, str] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "small", inputs, outputs, initializers)
    imports = [helper.make_opsetid(*opset) for opset in opsets]
    model = helper.make_model(
        graph, ir_version=IR_VERSION, opset_imports=imports, functions=functions
    )
    helper.set_model_props(model, metadata or {})
    return model


def features_model(
    batch: int | str | None = "batch", *, softmax: bool = False, **more: Any
) -> onnx.ModelProto:
    """(B, 6) -> logits (B, 5), or their softmax."""
    last = "raw" if softmax else "logits"
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Tanh", ["y"], ["z"]),
        helper.make_node("MatMul", ["z", "v"], [last]),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["raw"], ["logits"], axis=1))
    return make_model(
        nodes,
        [value("x", FLOAT, [batch, NUM_FEATURES])],
        [value("logits", FLOAT, [batch, NUM_LABELS])],
        [weights("w", NUM_FEATURES, WIDTH), weights("v", WIDTH, NUM_LABELS, seed=1)],
        **more,
    )


def two_vectors_model() -> onnx.ModelProto:
    """left (B, 2) and right (B, 3) -> logits (B, 5)."""
    return make_model(
        [
            helper.make_node("Concat", ["left", "right"], ["x"], axis=1),
            helper.make_node("MatMul", ["x", "w"], ["logits"]),
        ],
        [value("left", FLOAT, ["batch", 2]), value("right", FLOAT, ["batch", 3])],
        [value("logits", FLOAT, ["batch", NUM_LABELS])],
        [weights("w", 5, NUM_LABELS)],
    )


def image_model(
    size_px: int | str | tuple[int, int] = 32,
    *,
    layout: str = "NCHW",
    batch: int | str = "batch",
    channels: int = 3,
) -> onnx.ModelProto:
    """Images -> logits (B, 5) and the channel means (B, 8)."""
    height, width = size_px if isinstance(size_px, tuple) else (size_px, size_px)
    nchw = [batch, channels, height, width]
    shape = nchw if layout == "NCHW" else [batch, height, width, channels]
    first = "x" if layout == "NCHW" else "turned"
    turn = [helper.make_node("Transpose", ["x"], [first], perm=[0, 3, 1, 2])]
    nodes = [
        *(turn if layout == "NHWC" else []),
        helper.make_node("Conv", [first, "k"], ["c"], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["means"]),
        helper.make_node("MatMul", ["means", "v"], ["logits"]),
    ]
    return make_model(
        nodes,
        [value("x", FLOAT, shape)],
        [value("logits", FLOAT, [batch, NUM_LABELS]), value("means", FLOAT, [batch, WIDTH])],
        [weights("k", WIDTH, channels, 3, 3), weights("v", WIDTH, NUM_LABELS, seed=1)],
    )


def text_model(
    names: Sequence[str] = ("input_ids", "attention_mask"), length: int | str = "length"
) -> onnx.ModelProto:
    """Token ids -> their vectors (B, L, 8), zero for masked ones, and the sum of these (B, 8)."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["found"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=FLOAT),
        helper.make_node("Unsqueeze", ["mask", "axis"], ["column"]),
        helper.make_node("Mul", ["found", "column"], ["last_hidden_state"]),
        helper.make_node("ReduceSum", ["last_hidden_state", "one"], ["sentence"], keepdims=0),
    ]
    return make_model(
        nodes,
        [value(name, INT64, ["batch", length]) for name in names],
        [
            value("last_hidden_state", FLOAT, ["batch", length, WIDTH]),
            value("sentence", FLOAT, ["batch", WIDTH]),
        ],
        [
            weights("table", VOCABULARY, WIDTH),
            numpy_helper.from_array(np.array([2]), "axis"),
            numpy_helper.from_array(np.array([1]), "one"),
        ],
    )


TOKENS = ("input_ids", "attention_mask", "token_type_ids")


def exported_texts(snapshot: Path) -> onnx.ModelProto:
    """Export a BERT with a head for tokens as torch's exporter does, with B and L dynamic.

    Its outputs are `vectors` (B, L, D), `words` (B, L, K) and `first` (B, K), the scores of the
    first token. The exporter that is not `dynamo` leaves out the mask.
    """
    import torch
    from transformers import AutoModelForTokenClassification

    class Exported(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModelForTokenClassification.from_pretrained(snapshot)

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            given = dict(zip(TOKENS, tensors, strict=True))
            vectors = self.model.base_model(**given).last_hidden_state
            logits = self.model.classifier(vectors)
            return vectors, logits, logits[:, 0]

    example = [torch.ones((2, 8), dtype=torch.int64) for _ in TOKENS]
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Exported().eval(),
            tuple(example),
            input_names=TOKENS,
            output_names=("vectors", "words", "first"),
            dynamic_shapes=((axes,) * len(TOKENS),),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def kept(
    model: onnx.ModelProto, outputs: Mapping[str, str], constants: Mapping[str, int] | None = None
) -> onnx.ModelProto:
    """Return a model with some of its outputs, and some of its inputs always of one value.

    Args:
        outputs: Those that stay, and what they are called.
        constants: Name of an input (B, L) -> its value.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    known = {output.name: output for output in graph.output}
    del graph.output[:]
    for name, new_name in outputs.items():
        known[name].name = new_name
        graph.output.append(known[name])
        graph.node.append(helper.make_node("Identity", [name], [new_name]))
    for name, number in (constants or {}).items():
        [place] = [at for at, value in enumerate(graph.input) if value.name == name]
        del graph.input[place]
        graph.initializer.append(numpy_helper.from_array(np.array([[number]]), f"{name}_value"))
        graph.node.insert(0, helper.make_node("Expand", [f"{name}_value", "shape_of_ids"], [name]))
    if constants:
        graph.node.insert(0, helper.make_node("Shape", ["input_ids"], ["shape_of_ids"]))
    return changed


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def save_apart(model: onnx.ModelProto, path: Path, location: str = "weights.bin") -> Path:
    """Save a model with its weights in a file beside it."""
    onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=0)
    return path


def place_apart(model: onnx.ModelProto, **where: str) -> onnx.ModelProto:
    """Say of the first tensor that it lies elsewhere."""
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in where.items():
        tensor.external_data.add(key=key, value=text)
    return model


def classifier(
    classes: Sequence[str] | Sequence[int] = ("no", "yes"),
    *,
    zipped: Sequence[str] | Sequence[int] | None = ("no", "yes"),
    behind: Sequence[Any] = (),
    labelled: bool = True,
) -> onnx.ModelProto:
    """As exporters of scikit-learn write them: (B, 6) -> a label, and probabilities by class.

    Args:
        classes: What the classifier calls its classes.
        zipped: What a ZipMap behind it calls them; None: there is none.
        behind: Operators between `raw`, the classifier's output, and `probabilities`.
        labelled: The label is an output.
    """
    is_text = isinstance(classes[0], str)
    numbers = np.random.default_rng(0).normal(size=(len(classes), NUM_FEATURES)).reshape(-1)
    last = "raw" if behind else "probabilities"
    nodes = [
        helper.make_node(
            "LinearClassifier",
            ["x"],
            ["label", last],
            domain="ai.onnx.ml",
            coefficients=numbers.astype(np.float32).tolist(),
            intercepts=[0.0] * len(classes),
            post_transform="SOFTMAX",
            **{"classlabels_strings" if is_text else "classlabels_ints": list(classes)},
        ),
        *behind,
    ]
    outputs = [value("label", TensorProto.STRING if is_text else INT64, [None])] * labelled
    if zipped is None:
        outputs.append(value("probabilities", FLOAT, [None, len(classes)]))
    else:
        is_of_text = isinstance(zipped[0], str)
        named = {"classlabels_strings" if is_of_text else "classlabels_int64s": list(zipped)}
        inputs, made = ["probabilities"], ["output_probability"]
        nodes.append(helper.make_node("ZipMap", inputs, made, domain="ai.onnx.ml", **named))
        entry = helper.make_tensor_type_proto(FLOAT, None)
        key = TensorProto.STRING if is_of_text else INT64
        sequence_type = helper.make_sequence_type_proto(helper.make_map_type_proto(key, entry))
        outputs.append(helper.make_value_info("output_probability", sequence_type))
    ends = [value("x", FLOAT, [None, NUM_FEATURES])], outputs
    return make_model(nodes, *ends, opsets=[("", OPSET), ("ai.onnx.ml", 1)])


def yolo_model(
    head: str,
    *,
    size_px: tuple[int, int] | tuple[str, str] = (64, 64),
    batch: int | str = "batch",
    **metadata: str,
) -> onnx.ModelProto:
    """Images -> boxes of three labels in one tensor, with the metadata of ultralytics' exporter.

    Args:
        head: `places`: (B, 7, N), centres, widths, heights and scores; `rows`: (B, N, 6), corners,
            scores and labels.
        metadata: What it says in place of the usual.
    """
    usual = {
        **{"author": "Ultralytics", "task": "detect", "stride": "8", "imgsz": "[64, 64]"},
        **{"names": "{0: 'person', 1: 'bus', 2: 'cat'}", "batch": "1", "end2end": "False"},
    }
    if head == "places":
        scale, offset, shape = [64.0, 64, 40, 40, 1, 1, 1], [0.0] * 7, [batch, 7, "anchors"]
    else:
        scale, offset, shape = [32.0] * 4 + [1, 2.999], [0.0, 0, 32, 32, 0, 0], [batch, "n", 6]
    count = len(scale)
    column = [np.array(values, np.float32).reshape(1, -1, 1) for values in (scale, offset)]
    is_label = np.arange(count).reshape(1, -1, 1) == (5 if head == "rows" else -1)
    nodes = [
        helper.make_node("Sub", ["images", "half"], ["x"]),
        helper.make_node("Conv", ["x", "k"], ["c"], strides=[8, 8]),
        helper.make_node("Sigmoid", ["c"], ["s"]),
        helper.make_node("Reshape", ["s", "flat"], ["f"]),
        helper.make_node("Mul", ["f", "scale"], ["m"]),
        helper.make_node("Add", ["m", "offset"], ["a"]),
        helper.make_node("Floor", ["a"], ["whole"]),
        helper.make_node("Where", ["is_label", "whole", "a"], ["w"]),
        helper.make_node(
            "Transpose", ["w"], ["output0"], perm=[0, 2, 1] if head == "rows" else [0, 1, 2]
        ),
    ]
    noise = np.random.default_rng(5).normal(size=(count, 3, 8, 8)).astype(np.float32)
    constants = {
        **{"half": np.array(0.5, np.float32), "k": 0.3 * noise, "flat": np.array([0, count, -1])},
        **{"scale": column[0], "offset": column[1], "is_label": is_label},
    }
    return make_model(
        nodes,
        [value("images", FLOAT, [batch, 3, *size_px])],
        [value("output0", FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
        metadata={**usual, **metadata},
    )
