"""Test that names of models elsewhere are recognised, each with advice on running the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from onnx import helper
from support.models.model_cases import resolve
from support.models.onnx_files import FLOAT, INT64, make_model, save, value
from support.runs.jobs import job_over

from pipeline.core.errors import JobError
from pipeline.job.model import Model
from pipeline.models.resolving.named_model import describe_name
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.torchvision_catalog import torchvision_facts


def refusal(**model: Any) -> str:
    with pytest.raises(JobError) as caught:
        resolve(**model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_and_an_onnx_file_are_named_by_path(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    for name in (tmp_path, tmp_path / "m.onnx"):
        message = refusal(name=str(name), labels=None)
        assert message.startswith(f"model.name = {str(name)!r}: is a ")
        assert "named by model.path" in message


def test_a_file_and_a_name_of_a_hub_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "w.pth").touch()
    assert f"Write model.weights: {tmp_path}/w.pth" in refusal(name=str(tmp_path / "w.pth"))
    assert "`pipeline pull hf://org/bert FOLDER`, then model.path" in refusal(name="org/bert")
    assert describe_name("resnet81") is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fasterrcnn_resnet50_fpn", "is a model of detection: write task detect"),
        ("r3d_18", "is a model of video: take model.factory"),
        ("raft_small", "is a model of optical_flow: take model.factory"),
        ("fcn_resnet50", "is a model of segmentation: write task raw"),
    ],
)
def test_torchvisions_other_models_say_at_once_all_that_is_missing(name: str, words: str) -> None:
    message = refusal(name=name, labels=None)
    assert words in message
    facts = torchvision_facts(name)
    assert facts is not None
    assert facts["family"]


@pytest.mark.parametrize("fields", [{}, {"task": "detect", "labels": ["cat"]}])
def test_an_onnx_file_with_boxes_in_one_tensor_is_refused_with_what_reads_it(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    node = helper.make_node("Reshape", ["images", "shape"], ["output0"])
    shape = helper.make_tensor("shape", INT64, [3], [0, 3, -1])
    image = value("images", FLOAT, ["batch", 3, 32, 32])
    boxes = value("output0", FLOAT, ["batch", 3, 1024])
    path = str(save(make_model([node], [image], [boxes], [shape]), tmp_path / "yolo.onnx"))
    message = refusal(name=None, path=path, **{"labels": None, "task": None, **fields})
    assert "yolo.onnx: gives 'output0' float32 (batch, 3, 1024)" in message
    assert "export the model with outputs boxes and scores" in message
    assert "take task 'raw' with model.outputs" in message


def test_texts_for_a_model_of_images_are_told_by_their_cause() -> None:
    job = job_over("text", Model(name="efficientnet-lite0"))
    with pytest.raises(JobError, match=r"^efficientnet-lite0 takes images, and the job has texts"):
        resolve_model(job)


def test_a_classifier_has_no_family_and_a_layer_of_a_detector_may_be_taken() -> None:
    facts = torchvision_facts("resnet18")
    assert facts is not None
    assert facts["family"] == ""
    message = refusal(name="retinanet_resnet50_fpn", labels=None, task="embed", embedding_dim=1,
                   layer="backbone")  # fmt: skip
    assert "needs the URI of a state dict" in message
