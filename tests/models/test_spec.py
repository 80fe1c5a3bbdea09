"""Test that weights are data, and that a model gives the settings that a job leaves out."""

from __future__ import annotations

import hashlib
import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from safetensors.torch import save_file
from support.models.model_cases import LABELS, colours_state, refusal, resolve, saved

from pipeline.core.errors import JobError
from pipeline.models.spec import load_module


@pytest.fixture(autouse=True)
def _no_imports_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIPELINE_ALLOW_IMPORT", raising=False)


# ---------------------------------------------------------------------------- weights


def test_a_state_dict_loads_equal_from_pt_and_safetensors(tmp_path: Path):
    from torchvision.models import squeezenet1_1

    module = squeezenet1_1(num_classes=len(LABELS)).eval()
    state = module.state_dict()
    paths = [saved(tmp_path / "w.pt", state), str(tmp_path / "w.safetensors")]
    save_file(state, paths[1])
    image = torch.rand(2, 3, 64, 64)
    for path in paths:
        spec = resolve(name="squeezenet1_1", weights=path)
        assert spec.origin == "torchvision"
        assert spec.weights_sha256 == hashlib.sha256(Path(path).read_bytes()).hexdigest()
        loaded = load_module(spec)
        assert not loaded.training
        assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
        with torch.inference_mode():
            assert torch.equal(loaded(image), module(image))


@pytest.mark.parametrize(
    ("begins", "resize_px", "weights"),
    [
        ("0676ba61", 256, "IMAGENET1K_V1"),
        ("11ad3fa6", 232, "IMAGENET1K_V2"),
    ],
)
def test_the_transform_of_torchvision_is_that_of_the_weights(
    begins: str, resize_px: int, weights: str, tmp_path: Path
):
    path = saved(tmp_path / "w.pth", colours_state())
    spec = resolve(name="resnet50", weights=path, weights_sha256=begins + "0" * 56, transform={})
    assert spec.input.transform.resize_px == resize_px
    assert spec.notes[0].startswith(f"torchvision: transform and labels of {weights}")


def test_weights_that_torchvision_does_not_publish_ask_for_what_its_own_differ_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = saved(tmp_path / "w.pth", colours_state())
    with pytest.raises(JobError) as caught:
        resolve(name="resnet50", weights=path, transform={})
    assert str(caught.value) == (
        "transform: resnet50 brings no transform (model.weights are none that torchvision "
        "publishes, resize_px of IMAGENET1K_V1 is 256, resize_px of IMAGENET1K_V2 is 232); give "
        "resize_px"
    )
    spec = resolve(name="resnet50", weights=path, transform={"resize_px": 240})
    assert (spec.input.transform.size_px, spec.input.transform.resize_px) == (224, 240)
    assert not caplog.text
    spec = resolve(name="resnet18", weights=path, transform={})
    note = "model.weights are none that torchvision publishes; give transform if theirs is another"
    assert spec.notes[1] == f"torchvision: {note}"
    assert f"transform and labels of IMAGENET1K_V1; torchvision: {note}" in caplog.text, "in a run"


def test_another_digest_than_the_job_expects_is_refused(tmp_path: Path):
    path = saved(tmp_path / "w.pt", colours_state())
    message = refusal(weights=path, weights_sha256="0" * 64)
    assert hashlib.sha256(Path(path).read_bytes()).hexdigest() in message
    assert f"expected {'0' * 64}" in message
    assert "no weights file" in refusal(weights_sha256="0" * 64)


def test_weights_that_changed_after_resolving_are_refused(tmp_path: Path):
    spec = resolve(weights=saved(tmp_path / "w.pt", colours_state()))
    saved(tmp_path / "w.pt", {**colours_state(), "head.bias": torch.zeros(5)})
    with pytest.raises(JobError, match="sha256 is"):
        load_module(spec)


def test_a_list_is_no_state_dict_and_a_missing_file_is_named(tmp_path: Path):
    assert "holds a list" in refusal(weights=saved(tmp_path / "w.pt", [torch.zeros(1)]))
    assert "none.pt: no such file" in refusal(weights=str(tmp_path / "none.pt"))


# ---------------------------------------------------------------------------- which model


def test_a_torchvision_name_needs_weights_because_nothing_is_downloaded():
    message = refusal(name="resnet18", labels=None)
    assert "resnet18 needs the URI of a state dict" in message
    assert "curl -O https://download.pytorch.org/models/resnet18-f37072fd.pth gets" in message


def test_an_unknown_name_is_refused_beside_those_that_are_installed():
    message = refusal(name="no-such-model")
    assert (
        "'no-such-model': no such folder or file, no installed model (efficientnet-lite0" in message
    )


def test_everything_that_a_torchvision_name_lacks_is_reported_at_once():
    message = refusal(name="resnet18", labels=[], weights="w.onnx")
    assert "model.weights = w.onnx" in message
    assert "brings no class names" in message
    message = refusal(labels=None, transform={"size_px": 3})
    assert "brings no transform; give resize_px" in message
    assert "brings no class names" in message


def test_an_entry_point_brings_weights_labels_and_transform():
    spec = resolve(name="efficientnet-lite0", labels=None)
    assert spec.origin == "entry_point"
    assert (len(spec.task.labels), spec.input.transform.size_px, spec.task.top_k) == (1000, 224, 5)
    assert spec.weights_sha256
    assert len(spec.weights_sha256) == 64


@pytest.mark.parametrize(
    ("factory", "allow", "is_allowed"),
    [
        ("models:colours", ("models",), True),
        ("models:colours", ("other", "models"), True),
        ("json.decoder:JSONDecoder", ("json",), True),
        ("json.decoder:JSONDecoder", ("json.decoder",), True),
        ("models:colours", (), False),
        ("models:colours", ("model",), False),
        ("models:colours", ("models.sub",), False),
        ("models:colours", ("modelsother",), False),
        ("models:colours", ("",), False),
        ("json:loads", ("json.decoder",), False),
        ("os:system", ("models",), False),
        ("models_other:colours", ("models",), False),
    ],
)
def test_a_factory_is_imported_only_from_below_an_allowed_prefix(
    factory: str, allow: tuple[str, ...], is_allowed: bool, monkeypatch: pytest.MonkeyPatch
):
    if is_allowed:
        assert resolve(allow, models.TRANSFORM, factory=factory).name == factory
    else:
        with pytest.raises(JobError, match=r"is not allowed; pass --allow-import"):
            resolve(allow, models.TRANSFORM, factory=factory)
    monkeypatch.setenv("PIPELINE_ALLOW_IMPORT", " , ".join(allow))
    if is_allowed:
        assert resolve((), models.TRANSFORM, factory=factory).origin == "factory"
    else:
        with pytest.raises(JobError, match="is not allowed"):
            resolve((), models.TRANSFORM, factory=factory)


def test_a_module_that_is_not_allowed_is_not_even_imported(tmp_path: Path, monkeypatch: Any):
    (tmp_path / "with_side_effects.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "not allowed" in refusal(factory="with_side_effects:build")
    assert not (tmp_path / "ran").exists()
    assert "with_side_effects" not in sys.modules


@pytest.mark.parametrize(
    "factory",
    ["models:Colours.__init__", "models:_private", "models:__builtins__", "models", "models:", ":x",
     "models:colours()", "models:colours:x", "models:1", "models: colours"],
)  # fmt: skip
def test_only_a_public_name_of_a_module_is_a_factory(factory: str):
    message = refusal(factory=factory)
    assert "write package.module:callable" in message or "not allowed" in message


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("models:nothing", "models has no callable nothing"),
        ("models:LABELS", "models has no callable LABELS"),
        ("models.sub:x", "cannot import"),
        ("models:not_a_module", "returned str, not an nn.Module"),
        ("models:counting", "cannot be built: KeyError"),
    ],
)
def test_a_factory_that_does_not_work_is_named(
    factory: str, words: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("TEST_MODEL_LOADS", raising=False)
    message = refusal(factory=factory)
    assert words in message
    assert factory in message


def test_changed_code_of_a_factory_is_another_model(tmp_path: Path, monkeypatch: Any):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "changing.py"
    path.write_text("from models import colours\n")
    first = resolve(("changing",), factory="changing:colours")
    path.write_text("from models import colours  # changed\n")
    assert resolve(("changing",), factory="changing:colours").code_sha256 != first.code_sha256


# ---------------------------------------------------------------------------- labels


def test_labels_come_from_a_list_a_text_file_or_json(tmp_path: Path):
    (tmp_path / "l.txt").write_text("dark\r\nbright\n  red\ngr\u00fcn\nblue\n\n", "utf-8-sig")
    wanted = ("dark", "bright", "red", "gr\u00fcn", "blue")
    (tmp_path / "l.json").write_text(json.dumps(wanted), "utf-8-sig")
    for labels in (list(wanted), str(tmp_path / "l.txt"), str(tmp_path / "l.json")):
        assert resolve(labels=labels).task.labels == wanted


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("l.json", b"{bad", "cannot be read"),
        ("l.json", b'{"a": 1}', "expected a JSON list of strings"),
        ("l.json", b"[1, 2]", "expected a JSON list of strings"),
        ("l.txt", "caf\u00e9".encode("latin-1"), "cannot be read"),
        ("l.txt", b"\n\n", "brings no class names"),
        ("none.txt", None, "no such file"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(
    name: str, data: bytes | None, words: str, tmp_path: Path
):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    message = refusal(labels=str(tmp_path / name))
    assert message.startswith("model.labels")
    assert words in message


def test_labels_of_the_job_never_fall_back_to_those_of_the_model(tmp_path: Path):
    (tmp_path / "empty.txt").write_text("")
    for labels in ([], str(tmp_path / "empty.txt")):
        assert "brings no class names" in refusal(name="efficientnet-lite0", labels=labels)


def test_a_factory_needs_labels():
    assert "models:colours brings no class names" in refusal(labels=None)


def test_top_k_is_at_most_the_number_of_labels():
    assert resolve(top_k=3).task.top_k == 3
    assert resolve(top_k=50).task.top_k == 5


# ---------------------------------------------------------------------------- the spec


def test_a_spec_shows_no_credentials_and_travels_to_actors(tmp_path: Path):
    path = saved(tmp_path / "w.pt", colours_state())
    spec = replace(resolve(weights=path), storage_options={"key": "hunter2"})
    assert "hunter2" not in repr(spec)
    assert "hunter2" not in json.dumps(spec.to_dict())
    assert pickle.loads(pickle.dumps(spec)) == spec
