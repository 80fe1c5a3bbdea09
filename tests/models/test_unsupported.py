"""Names of models elsewhere are recognised, each with advice how to run the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from model_cases import resolve

from pipeline.core.errors import JobError
from pipeline.models.torchvision_catalog import torchvision_facts
from pipeline.models.unsupported import describe_name

WAY = "a function of your own that returns the nn.Module (model.factory, examples/custom_model)"
BERT = {"architectures": ["BertModel"], "model_type": "bert", "vocab_size": 30522}
VIT = {"architectures": ["ViTForImageClassification"], "image_size": 224, "num_channels": 3}
TIMM = {"architecture": "vit_tiny_patch16_224", "num_classes": 7, "pretrained_cfg": {}}


def refusal(**model: Any) -> str:
    with pytest.raises(JobError) as caught:
        resolve(**model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("files", "words", "way"),
    [
        (
            {"config.json": BERT, "model.safetensors": {}},
            "is a Hugging Face folder (config.json: BertModel, text), not supported directly",
            "Text is not read directly. To run it: encode the rows first to a column",
        ),
        (
            {"config.json": VIT},
            "is a Hugging Face folder (config.json: ViTForImageClassification, images)",
            "from_pretrained with this folder",
        ),
        ({"modules.json": [], "config.json": BERT}, "is a sentence-transformers folder", "encode"),
        (
            {"config.json": TIMM},
            "is a timm folder (vit_tiny_patch16_224)",
            "timm.create_model('vit_tiny_patch16_224', num_classes=7)",
        ),
        ({"MLmodel": {}}, "is an MLflow model, which can run code", "torch.save("),
        ({"saved_model.pb": {}}, "is a TensorFlow SavedModel", "torch.save("),
        ({}, "is a folder, and a model is named by an entry point", WAY),
        ({"config.json": [1]}, "is a folder, and a model is named by an entry point", WAY),
    ],
)
def test_a_folder_says_what_it_is_and_the_way_that_works(
    files: dict[str, Any], words: str, way: str, tmp_path: Path
) -> None:
    folder = tmp_path / "snap"
    folder.mkdir()
    for name, document in files.items():
        (folder / name).write_text(json.dumps(document))
    message = refusal(name=str(folder), labels=None)
    assert message.startswith(f"model.name = {str(folder)!r}: ")
    assert words in message
    assert way in message


def test_what_a_folder_says_of_itself_is_one_short_printable_line(tmp_path: Path) -> None:
    name = "x\n2026 ERROR forged\x1b]0;t\x07" + "y" * 5000
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [name]}))
    message = refusal(name=str(tmp_path), labels=None)
    assert "\x1b" not in message
    assert len(message) < 1000
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert "is a folder" in (describe_name(str(tmp_path)) or "")


def test_a_file_and_a_name_of_a_hub_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "w.pth").touch()
    assert f"Write model.weights: {tmp_path}/w.pth" in refusal(name=str(tmp_path / "w.pth"))
    assert "looks like a name on a model hub, and nothing is downloaded" in refusal(name="org/bert")
    assert describe_name("resnet81") is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fasterrcnn_resnet50_fpn", "is a detector, and detection is not supported directly"),
        ("r3d_18", "takes clips, and only images are read"),
        ("raft_small", "takes pairs of images"),
        ("fcn_resnet50", "write task raw, model.outputs with name out"),
    ],
)
def test_torchvisions_other_models_say_at_once_all_that_is_missing(name: str, words: str) -> None:
    message = refusal(name=name, labels=None)
    assert words in message
    facts = torchvision_facts(name)
    assert facts is not None
    assert facts["family"]


def test_a_classifier_has_no_family_and_a_layer_of_a_detector_may_be_taken() -> None:
    facts = torchvision_facts("resnet18")
    assert facts is not None
    assert facts["family"] == ""
    said = refusal(name="retinanet_resnet50_fpn", labels=None, task="embed", embedding_dim=1,
                   layer="backbone")  # fmt: skip
    assert "needs the URI of a state dict" in said


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"factory": "models:wants_a_name"},
            "model.factory = 'models:wants_a_name': needs name, and model.args does not "
            "have it; it takes name",
        ),
    ],
)
def test_a_factory_that_needs_arguments_is_told_before_anything_is_built(
    fields: dict[str, Any], words: str
) -> None:
    assert refusal(**fields) == words
