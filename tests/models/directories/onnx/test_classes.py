"""Test class names and probabilities of classifiers of tables, with and without a ZipMap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from support.models import onnx_files
from support.models.onnx_files import FLOAT, classifier, make_model, save, value

from pipeline.core.errors import JobError
from pipeline.models.directories.onnx.classes import activation_of
from pipeline.models.directories.onnx.onnx_facts import read_onnx_facts
from pipeline.models.onnx_module import OnnxModule

ML = "ai.onnx.ml"
ROWS = np.random.default_rng(1).normal(size=(7, onnx_files.NUM_FEATURES)).astype(np.float32)


def labels_of(model: onnx.ModelProto, folder: Path) -> tuple[str, ...] | None:
    return read_onnx_facts(save(model, folder / "m.onnx")).labels


@pytest.mark.parametrize("names", [("no", "yes"), (0, 1), (7, -2, 5)])
def test_probabilities_in_front_of_a_zipmap_are_those_in_its_maps(tmp_path: Path, names: Any):
    import onnxruntime

    path = save(classifier(names, zipped=names), tmp_path / "m.onnx")
    [maps] = onnxruntime.InferenceSession(path).run(["output_probability"], {"x": ROWS})
    expected = np.array([[row[name] for name in names] for row in maps])
    actual = OnnxModule.of(path, ["output_probability"])(torch.from_numpy(ROWS))
    np.testing.assert_array_equal(actual.numpy(), expected.astype(np.float32))
    facts = read_onnx_facts(path)
    assert facts.labels == tuple(map(str, names))
    assert facts.module.output == "output_probability"
    assert "m.onnx: 'output_probability' is read without its ZipMap" in facts.notes


def test_outputs_that_are_no_numbers_are_listed(tmp_path: Path):
    notes = read_onnx_facts(save(classifier(), tmp_path / "m.onnx")).notes
    assert "m.onnx: its output 'label' is text, and is not read" in notes


def test_the_file_itself_stays_as_it_is(tmp_path: Path):
    path = save(classifier(), tmp_path / "m.onnx")
    before = path.read_bytes()
    OnnxModule.of(path)(torch.from_numpy(ROWS))
    assert path.read_bytes() == before


def test_without_a_zipmap_the_classifier_names_the_classes(tmp_path: Path):
    assert labels_of(classifier(zipped=None), tmp_path) == ("no", "yes")
    assert labels_of(classifier((3, 4), zipped=None), tmp_path) == ("3", "4")
    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    scaled = classifier(
        zipped=None, behind=[helper.make_node("Mul", ["raw", "one"], ["probabilities"])]
    )
    scaled.graph.initializer.append(one)
    assert labels_of(scaled, tmp_path) == ("no", "yes")


def test_numbers_of_classes_inside_an_ensemble_are_no_names(tmp_path: Path):
    """There the label of the file comes from elsewhere: 0 may mean `no`."""
    assert labels_of(classifier(zipped=None, labelled=False), tmp_path) is None
    mixed = [helper.make_node("MatMul", ["raw", "turn"], ["probabilities"])]
    model = classifier(zipped=None, behind=mixed)
    model.graph.initializer.append(numpy_helper.from_array(np.eye(2, dtype=np.float32), "turn"))
    assert labels_of(model, tmp_path) is None


def test_names_that_are_no_text_are_none(tmp_path: Path):
    broken = classifier()
    broken.graph.node[-1].attribute[0].strings[:] = [b"\xff", b"yes"]
    assert labels_of(broken, tmp_path) is None


def test_a_zipmap_that_cannot_be_left_out_names_the_exporters_option(tmp_path: Path):
    """The bytes of a file without it would have no external data beside them."""
    model = classifier()
    model.graph.initializer.append(onnx_files.weights("unused", 2, 2))
    path = onnx_files.save_apart(model, tmp_path / "m.onnx")
    with pytest.raises(JobError) as caught:
        read_onnx_facts(path)
    assert str(caught.value) == (
        "model.path = m.onnx: output 'output_probability' is a sequence of maps (ZipMap), not a "
        'tensor: export with options={id(model): {"zipmap": False}}'
    )


def test_a_vector_of_one_number_is_a_regression_first(tmp_path: Path):
    node = helper.make_node("ReduceSum", ["x"], ["variable"], axes=[1])
    model = make_model(
        [node],
        [value("x", FLOAT, [None, 6])],
        [value("variable", FLOAT, [None, 1])],
        opsets=[("", 11)],
    )
    assert read_onnx_facts(save(model, tmp_path / "m.onnx")).tasks[0] == "regress"


def made_by(op_type: str, *, domain: str = "", then: tuple[str, ...] = (), **fields: Any) -> Any:
    """A graph whose output is what an operator makes, through others."""
    names = ["raw", *(f"step{index}" for index in range(len(then)))]
    nodes = [helper.make_node(op_type, ["x"], ["raw"], domain=domain, **fields)]
    for operator, name, before in zip(then, names[1:], names, strict=False):
        more = {"to": FLOAT} if operator == "Cast" else {}
        nodes.append(helper.make_node(operator, [before], [name], **more))
    shape = ["batch", 2]
    ends = [value(name, FLOAT, shape) for name in ("x", names[-1])]
    opsets = (("", onnx_files.OPSET), (ML, 3))
    return make_model(nodes, ends[:1], ends[1:], opsets=opsets), names[-1]


@pytest.mark.parametrize(
    ("graph", "activation"),
    [
        (made_by("Softmax"), "softmax"),
        (made_by("Softmax", then=("Cast", "Identity")), "softmax"),
        (made_by("Softmax", then=("Neg",)), None),
        (made_by("Softmax", domain="mine"), None),
        (made_by("Sigmoid"), "sigmoid"),
        (made_by("Relu"), None),
        (made_by("Normalizer", domain=ML, norm="L1"), "softmax"),
        (made_by("Normalizer", domain=ML, norm="L2"), None),
        (made_by("LinearClassifier", domain=ML, post_transform="SOFTMAX"), "softmax"),
        (made_by("LinearClassifier", domain=ML, post_transform="LOGISTIC"), None),
        (made_by("TreeEnsembleClassifier", domain=ML), None),
    ],
)
def test_what_the_last_operator_that_computes_says(graph: Any, activation: str | None):
    assert activation_of(*graph) == activation
