"""Test that torchvision's models predict as in torchvision, and load without the compiler."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.models.model_cases import resolve
from torchvision.models import get_model, get_model_weights
from torchvision.transforms._presets import ImageClassification

from pipeline.core.failures import failure_columns
from pipeline.inference.engines import open_engine
from pipeline.models.directories.probes import images
from pipeline.models.spec import ModelSpec, PredictorConfig, load_module
from pipeline.models.torchvision_catalog import torchvision_facts, torchvision_module
from pipeline.preprocessing.images.resizing import resize_and_crop
from pipeline.preprocessing.model_input import Limits

SCRIPT = """
import json, sys
from pipeline.models.torchvision_catalog import torchvision_module

def compiler(): return any(name.startswith("torch._dynamo") for name in sys.modules)

module, _ = torchvision_module("resnet18", None, None)
import torch
with torch.inference_mode():
    shape = list(module.eval()(torch.zeros(2, 3, 32, 32)).shape)
without = not compiler()
from torchvision.ops import roi_align
deferred = sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu")
from torch._dynamo.utils import is_compile_supported
print(json.dumps([shape, without, deferred == is_compile_supported("cpu"), compiler()]))
"""


@pytest.mark.slow
def test_a_model_is_built_without_the_compiler_which_is_there_when_it_is_wanted():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[2, 1000], True, True, True]


def test_facts_of_a_detector_are_those_of_its_weights():
    facts = torchvision_facts("fasterrcnn_resnet50_fpn")
    assert facts is not None
    assert facts["family"] == "detection"
    [coco] = facts["weights"]
    assert coco["sha256"] == "258fb6c6"
    assert coco["labels"][:2] == ["__background__", "person"]
    assert (coco["transform"]["resize"], coco["transform"]["size_px"]) == ("none", None)


class Mirrored(ImageClassification):
    """A preset that says what others say, and does something else."""

    def forward(self, img: Any) -> torch.Tensor:
        return super().forward(img).flip(-1)


def test_a_preset_that_makes_other_pixels_than_it_says_gives_no_transform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    weights = get_model_weights("resnet18").IMAGENET1K_V1
    monkeypatch.setattr(weights.value, "transforms", partial(Mirrored, crop_size=224))
    facts = torchvision_facts("resnet18")
    assert facts is not None
    assert facts["weights"][0]["transform"] is None


def predicted(spec: ModelSpec, encoded: Sequence[bytes]) -> list[dict[str, Any]]:
    """Return what the engine predicts of encoded images, in one batch."""
    count = len(encoded)
    columns = {"row_id": [*map(str, range(count))], "uri": [""] * count, "image": [*encoded]}
    rows = pa.table({**columns, **failure_columns([None] * count)})
    prepared = spec.input.prepare(rows, {}, Limits(1 << 24, 1 << 24))
    engine = open_engine(PredictorConfig(spec, 8, 0, 1, pa.schema([])))
    return engine.predict(prepared, {}).to_pylist()


def publish(
    monkeypatch: pytest.MonkeyPatch, folder: Path, weights: Any, state: Mapping[str, torch.Tensor]
) -> str:
    """Save a state where torchvision keeps downloads, as the file that it has for its weights.

    The file's digest takes the place of the published one in the address of the weights, so that
    torchvision's own builder loads the file, too.
    """
    path = folder / "w.pth"
    torch.save(state, path)
    name = f"w-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"
    monkeypatch.setattr(weights.value, "url", f"https://download.pytorch.org/models/{name}")
    monkeypatch.setenv("TORCH_HOME", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "facts"))
    (folder / "hub" / "checkpoints").mkdir(parents=True)
    return str(path.rename(folder / "hub" / "checkpoints" / name))


def calibrated_state(name: str, **options: Any) -> dict[str, torch.Tensor]:
    """Return random tensors of a model whose outputs differ by image."""
    torch.manual_seed(5)
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": False, "transform_input": True}
    module = get_model(name, weights=None, **options)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = None
        if isinstance(part, torch.nn.Linear):
            torch.nn.init.normal_(part.weight, std=3 / part.in_features**0.5)
    side_px = options.get("image_size", 299 if name == "inception_v3" else 160)
    opened = [
        Image.open(io.BytesIO(data)).convert("RGB").resize((side_px,) * 2) for data in images()
    ]
    batch = torch.from_numpy(np.stack([*map(np.array, opened)])).permute(0, 3, 1, 2) / 64 - 2
    with torch.no_grad():
        module.train()(batch)
    return module.state_dict()


def old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the names that the published files of DenseNet have."""
    return {
        re.sub(r"\.(norm|relu|conv)([12])\.", r".\1.\2.", name): value
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }


SWAG = {"weights": "IMAGENET1K_SWAG_E2E_V1", "image_size": 384}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("googlenet", {}),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in (
                ("densenet121", {}),
                ("inception_v3", {}),
                ("mnasnet0_5", {}),
                ("vit_b_16", SWAG),
            )
        ),
    ],
)
def test_published_weights_of_a_classifier_predict_as_in_torchvision(
    name: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    weights = get_model_weights(name)[options.get("weights", "IMAGENET1K_V1")]
    more = {key: value for key, value in options.items() if key != "weights"}
    state = calibrated_state(name, **more)
    path = publish(monkeypatch, tmp_path, weights, old_names(state) if "dense" in name else state)
    library, preset = get_model(name, weights=weights).eval(), weights.transforms()
    spec = resolve(name=name, weights=path, labels=None, transform={})
    assert spec.notes == (f"torchvision: transform and labels of {weights.name}",)
    rows = predicted(spec, images())
    for data, row in zip(images(), rows, strict=True):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        made = resize_and_crop(pixels, spec.input.transform) / 255
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preset.mean, preset.std))
        assert (made - (preset(image) * std + mean)).abs().max() <= 2.001 / 255
        with torch.inference_mode():
            scores = library(((made - mean) / std)[None]).softmax(1)[0]
        best = [(weights.meta["categories"][i], float(scores[i])) for i in scores.topk(5).indices]
        assert [entry["label"] for entry in row["top_k"]] == [label for label, _ in best]
        assert [e["score"] for e in row["top_k"]] == pytest.approx([s for _, s in best], abs=1e-4)
    assert len({row["label"] for row in rows}) > 1, "the images are told apart"


@pytest.mark.slow
def test_published_weights_of_a_segmentation_load_with_their_second_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    name = "deeplabv3_mobilenet_v3_large"
    weights = get_model_weights(name).COCO_WITH_VOC_LABELS_V1
    state = calibrated_state(name, weights_backbone=None, aux_loss=True, num_classes=21)
    path = publish(monkeypatch, tmp_path, weights, state)
    library = get_model(name, weights=weights).eval()
    fields = {"task": "raw", "outputs": [{"name": "out", "shape": [21, 64, 64]}]}
    size = {"size_px": 64, "resize_px": 64, "interpolation": "bilinear"}
    plain = {"mean": [0.0] * 3, "std": [1.0] * 3}
    spec = resolve(name=name, weights=path, labels=None, transform={**size, **plain}, **fields)
    data = images()[3]
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(data)))).permute(2, 0, 1)
    with torch.inference_mode():
        expected = library(resize_and_crop(pixels, spec.input.transform)[None] / 255)["out"]
    [row] = predicted(spec, [data])
    assert np.ravel(row["out"]) == pytest.approx(expected.flatten().numpy(), abs=1e-4)


def test_weights_with_versions_of_modules_load_from_safetensors(tmp_path: Path):
    state = get_model("mnasnet0_5", weights=None).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    spec = resolve(
        name="mnasnet0_5", weights=str(tmp_path / "w.safetensors"), labels=None, transform={}
    )
    loaded = load_module(spec).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    ("name", "is_published", "is_without_eps"),
    [
        pytest.param("fasterrcnn_resnet50_fpn", True, True, marks=pytest.mark.slow),
        pytest.param("fasterrcnn_resnet50_fpn", False, False, marks=pytest.mark.slow),
        pytest.param("retinanet_resnet50_fpn_v2", True, False, marks=pytest.mark.slow),
        pytest.param("keypointrcnn_resnet50_fpn", True, True, marks=pytest.mark.slow),
    ],
)
def test_detectors_have_no_epsilon_just_where_torchvision_takes_it_from_its_weights(
    name: str, is_published: bool, is_without_eps: bool
):
    """They are built without a download."""
    state = get_model(name, weights=None, weights_backbone=None).state_dict()
    published = get_model_weights(name).COCO_V1.url.rpartition("-")[2].removesuffix(".pth")
    module, is_loaded = torchvision_module(name, published if is_published else "1" * 64, state)
    assert is_loaded == is_published
    eps = {part.eps for part in module.modules() if hasattr(part, "running_mean")}
    assert (eps == {0.0}) == is_without_eps
