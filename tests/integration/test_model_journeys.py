"""Journeys of people who bring a model: own preprocessing, a detector, own code before and after.

Each is one job file of at most fifteen lines and one command. The journey of a table is in
test_examples.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from support.inputs.photos import build_images
from support.models.snapshots import make_timm
from support.runs.cli import pipeline

from pipeline.commit.published.read import read_predictions

pytestmark = [pytest.mark.slow, pytest.mark.no_ray]

NUM_PHOTOS = 8
NAMES = ["cat", "dog", "fox", "owl"]

OWN_PREPROCESSING = """
source: {uri: photos, format: images}
model: {path: model}
transform:
  size_px: [96, 160]
  resize: stretch
  interpolation: lanczos
sink: {uri: out}
"""

DETECTOR = """
source: {uri: photos, format: images}
model:
  name: ssdlite320_mobilenet_v3_large
  weights: detector.safetensors
  labels: labels.txt
  task: detect
  min_score: 0.01
sink: {uri: out}
"""

OWN_CODE = """
source: {uri: photos, format: images}
transform:
  factory: mine:gray_letterbox
  size_px: 64
  mean: [0]
  std: [1]
model:
  factory: mine:build
  task: raw
  outputs: [{name: level, shape: [1]}]
  postprocess: mine:Lightness
sink: {uri: out}
"""

MINE = """
import pyarrow as pa
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional


class Letterbox:
    def __call__(self, image):
        height, width = image.shape[-2:]
        high, wide = (max(1, round(64 * side / max(height, width))) for side in (height, width))
        image = functional.resize(image, [high, wide], antialias=True)
        return functional.pad(image, [0, 0, 64 - wide, 64 - high])


def gray_letterbox():
    return v2.Compose([Letterbox(), v2.Grayscale()])


class Level(torch.nn.Module):
    def forward(self, images):
        return images.mean(dim=(1, 2, 3))[:, None]


def build():
    return Level()


class Lightness:
    schema = pa.schema([("light", pa.string())])

    def __call__(self, outputs):
        return {"light": [f"{value:.3f}" for [value] in outputs["level"]]}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with photos, in which job files name things as people do."""
    build_images(tmp_path / "photos", NUM_PHOTOS, seed=5, num_bad=0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def publish(folder: Path, job: str, *options: str) -> dict[str, dict[str, Any]]:
    """Run a job; return its predictions by row id."""
    assert len(job.strip().splitlines()) <= 15
    (folder / "job.yaml").write_text(job)
    done = pipeline("run", "job.yaml", *options, env={"PYTHONPATH": str(folder)})
    assert done.code == 0, done.stderr
    rows = read_predictions(str(folder / "out")).to_pylist()
    assert len(rows) == NUM_PHOTOS
    return {row["row_id"]: row for row in rows}


def opened(path: Path) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(path)).convert("RGB")


def test_a_timm_model_sees_what_its_own_preprocessing_would_show_it(folder: Path):
    """Journey 2: not square, stretched, by Lanczos."""
    import timm

    make_timm(folder / "model", "resnet10t", len(NAMES), label_names=NAMES)
    found = publish(folder, OWN_PREPROCESSING)

    model = timm.create_model("resnet10t", pretrained=False, num_classes=len(NAMES))
    model.load_state_dict(load_file(folder / "model" / "model.safetensors"))
    config = model.default_cfg
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    for row_id, row in found.items():
        image = opened(folder / "photos" / row_id).resize((160, 96), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        with torch.inference_mode():
            scores = model.eval()(((pixels - mean) / std)[None]).softmax(1)[0]
        assert row["label"] == NAMES[int(scores.argmax())]
        assert row["score"] == pytest.approx(float(scores.max()), abs=1e-4)


def test_a_detector_of_torchvision_gives_boxes_in_pixels_of_the_photos(folder: Path):
    """Journey 4: by its name."""
    from torchvision.models import get_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = get_model(
            "ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=4
        )
    save_file(module.state_dict(), folder / "detector.safetensors")
    (folder / "labels.txt").write_text("\n".join(["background", *NAMES[:3]]))
    found = publish(folder, DETECTOR)

    assert any(row["detections"] for row in found.values())
    for row_id, row in found.items():
        size = opened(folder / "photos" / row_id).size
        assert (row["width_px"], row["height_px"]) == size
        for seen in row["detections"]:
            assert 0 <= seen["x_min"] <= seen["x_max"] <= size[0]
            assert 0 <= seen["y_min"] <= seen["y_max"] <= size[1]
            assert seen["label"] == ["background", *NAMES][seen["label_id"]]


def test_code_of_ones_own_runs_before_and_after_the_model(folder: Path):
    """Journey 7: a gray letterbox of torchvision v2 and a few lines, and a column of one's own."""
    (folder / "mine.py").write_text(MINE)
    found = publish(folder, OWN_CODE, "--allow-import", "mine")
    for row_id, row in found.items():
        image = np.array(opened(folder / "photos" / row_id).convert("L"), float) / 255
        covered = min(image.shape) / max(image.shape)
        assert float(row["light"]) == pytest.approx(image.mean() * covered, abs=0.02)

    (folder / "mine.py").write_text(MINE.replace('outputs["level"]', 'outputs["glow"]'))
    failed = pipeline(
        *("run", "job.yaml", "--allow-import", "mine", "--set", "sink.uri=again"),
        env={"PYTHONPATH": str(folder)},
    )
    assert failed.code == 2
    assert "glow" in failed.stderr
