"""Read class names and probabilities from ONNX graphs of table libraries.

Exporters of scikit-learn and LightGBM put a ZipMap behind the probabilities: a sequence of maps,
class -> probability, a map per row. What enters it is the tensor (B, K), and the operator has the
class names, so the graph is run without it.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

_ML = "ai.onnx.ml"
_STANDARD = ("", "ai.onnx")
_LABELS = ("classlabels_int64s", "classlabels_ints", "classlabels_strings")
_CLASSIFIERS = ("TreeEnsembleClassifier", "LinearClassifier", "SVMClassifier")
_KEEP_LABELS = ("Identity", "Cast", "Reshape", "Squeeze")
_KEEP_CLASSES = ("Identity", "Cast", "Normalizer", "Softmax", "Mul")
"""Operators whose first input has the same classes, in the same order, as their output."""
_KEEP_VALUES = ("Identity", "Cast")
_ACTIVATIONS = {"Softmax": "softmax", "Sigmoid": "sigmoid"}
NAMED = "probabilities"
_PROBABILITIES = ("probabilities", "output_probability")
"""Names of skl2onnx and onnxmltools."""
_OPSET = 13
"""Version of `Cast`, if the graph has only operators of ai.onnx.ml."""

_MAX_CHARS = 1 << 20
_LABEL_KEYS = ("labels", "names", "classes", "class_names", "id2label")
"""Where exporters leave class names in the file's metadata."""


def unzip(model: onnx.ModelProto) -> dict[str, tuple[str, ...] | None]:
    """Replace each ZipMap behind an output by what enters it: the output becomes a float32 tensor.

    Args:
        model: Changed in place.

    Returns:
        Name of the output -> class names of its columns; None: they are not text.
    """
    from onnx import TensorProto, helper

    makers = _makers(model)
    class_names: dict[str, tuple[str, ...] | None] = {}
    for output in model.graph.output:
        node = makers.get(output.name)
        is_mapped = output.type.WhichOneof("value") == "sequence_type"
        if node is None or not is_mapped or not _is(node, _ML, ("ZipMap",)) or not node.input:
            continue
        class_names[output.name] = labels = _labels_of(node)
        width = None if labels is None else len(labels)
        node.CopyFrom(
            helper.make_node("Cast", [node.input[0]], [output.name], to=TensorProto.FLOAT)
        )
        output.CopyFrom(
            helper.make_tensor_value_info(output.name, TensorProto.FLOAT, [None, width])
        )
    if class_names and not any(opset.domain in _STANDARD for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid("", _OPSET))
    return class_names


def classes_of(model: onnx.ModelProto, output: str) -> tuple[str, ...] | None:
    """Return the class names of an output's columns, as the classifier that makes it has them.

    Only those that another output gives as its labels: an ensemble's classifiers may have numbers
    of their own, which are no names.

    Args:
        output: A tensor (B, K).
    """
    makers = _makers(model)
    node = _maker(makers, output, _KEEP_CLASSES)
    if not _is(node, _ML, _CLASSIFIERS):
        return None
    assert node is not None, "it is a classifier"
    labels = (_maker(makers, other.name, _KEEP_LABELS) for other in model.graph.output
              if other.name != output)  # fmt: skip
    return _labels_of(node) if any(maker is node for maker in labels) else None


def activation_of(model: onnx.ModelProto, output: str) -> str | None:
    """Return `softmax` if rows of an output add up to 1, `sigmoid` if they lie within [0, 1].

    By the operator that computes it; `probabilities` by the name that exporters of table libraries
    give; None: nothing says it.
    """
    if output in _PROBABILITIES:
        return NAMED
    node = _maker(_makers(model), output, _KEEP_VALUES)
    if node is None:
        return None
    if _is(node, _ML, ("Normalizer",)):
        is_sum = any(
            attribute.name == "norm" and attribute.s == b"L1" for attribute in node.attribute
        )
        return "softmax" if is_sum else None
    if _is(node, _ML, _CLASSIFIERS):
        # LOGISTIC gives two columns that add up to 1, or one of each class that do not.
        last = {attribute.s for attribute in node.attribute if attribute.name == "post_transform"}
        return "softmax" if last == {b"SOFTMAX"} else None
    return _ACTIVATIONS.get(node.op_type) if node.domain in _STANDARD else None


def labels_in_metadata(metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the class names in the metadata; None if there are none that can be read."""
    for key in _LABEL_KEYS:
        text = metadata.get(key, "")
        if names := _names(text):
            return names
    return None


def literal(text: str) -> Any:
    """Read a value of the metadata, as JSON or as Python writes it; None if it is none."""
    if len(text) > _MAX_CHARS:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        try:
            return ast.literal_eval(text)  # literals only: nothing is run
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None


def _makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output if name}


def _maker(
    makers: dict[str, onnx.NodeProto], name: str, passing: tuple[str, ...]
) -> onnx.NodeProto | None:
    """Return the node that makes a tensor, behind those operators that only pass it on."""
    for _ in range(len(makers) + 1):  # a damaged graph may have a cycle
        node = makers.get(name)
        if node is None or node.op_type not in passing or not node.input:
            return node
        name = node.input[0]
    return None


def _is(node: onnx.NodeProto | None, domain: str, names: tuple[str, ...]) -> bool:
    return node is not None and node.domain == domain and node.op_type in names


def _labels_of(node: onnx.NodeProto) -> tuple[str, ...] | None:
    """Return the class names of an operator; None if it has none, or they are not UTF-8."""
    for attribute in node.attribute:
        if attribute.name in _LABELS and attribute.ints:
            return tuple(str(number) for number in attribute.ints)
        if attribute.name in _LABELS and attribute.strings:
            try:
                return tuple(text.decode() for text in attribute.strings)
            except UnicodeDecodeError:
                return None
    return None


def _names(text: str) -> tuple[str, ...]:
    """Read a list of names, or a dict of number -> name, as JSON or as Python writes it."""
    values = literal(text)
    if isinstance(values, dict):
        by_number = {str(key): name for key, name in values.items()}
        values = [by_number.get(str(number)) for number in range(len(by_number))]
    is_list = isinstance(values, list | tuple) and all(isinstance(v, str) for v in values)
    return tuple(values) if is_list else ()
