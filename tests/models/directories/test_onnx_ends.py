"""The end of an ONNX graph says whether outputs are scores; the rows do, where it says nothing."""

from __future__ import annotations

from typing import Any

import pytest
from onnx import helper
from support.models import onnx_files

from pipeline.models.directories.onnx.classes import activation_of

ML = "ai.onnx.ml"


def made_by(op_type: str, *, domain: str = "", then: tuple[str, ...] = (), **fields: Any) -> Any:
    """A graph whose output is what an operator makes, through others."""
    names = ["raw", *(f"step{index}" for index in range(len(then)))]
    nodes = [helper.make_node(op_type, ["x"], ["raw"], domain=domain, **fields)]
    for kind, name, before in zip(then, names[1:], names, strict=False):
        more = {"to": onnx_files.FLOAT} if kind == "Cast" else {}
        nodes.append(helper.make_node(kind, [before], [name], **more))
    shape = ["batch", 2]
    ends = [onnx_files.value(name, onnx_files.FLOAT, shape) for name in ("x", names[-1])]
    opsets = (("", onnx_files.OPSET), (ML, 3))
    return onnx_files.make_model(nodes, ends[:1], ends[1:], opsets=opsets), names[-1]


@pytest.mark.parametrize(
    ("graph", "found"),
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
def test_what_the_last_operator_that_computes_says(graph: Any, found: str | None):
    assert activation_of(*graph) == found
