"""Test that the recipe for clips of video gives the logits of transformers."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support.models.snapshots import write_json, write_model
from support.runs.checkout import ROOT

LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
          "intermediate_size": 64, "image_size": 32, "num_frames": 4}  # fmt: skip
SHAPE = [4, 40, 36]
CASES: dict[str, dict[str, Any]] = {
    # sizes that only some families have
    "VideoMAE": {"patch_size": 8},
    "Timesformer": {"patch_size": 8},
    "Vivit": {"tubelet_size": [2, 8, 8]},
}
_PROCESSORS = {"VideoMAE": "VideoMAE", "Timesformer": "VideoMAE", "Vivit": "Vivit"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", CASES)
def test_logits_of_clips_are_those_of_the_library(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(ROOT / "examples" / "video")
    clips = importlib.import_module("clips")
    cls = getattr(transformers, f"{family}ForVideoClassification")
    write_model(tmp_path, cls, cls.config_class(**LAYERS, **CASES[family], num_labels=3))
    write_json(tmp_path / "preprocessor_config.json", {
        "image_processor_type": f"{_PROCESSORS[family]}ImageProcessor",
        "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}})  # fmt: skip
    numbers = np.random.default_rng(0).integers(0, 255, (3, *SHAPE, 3), np.uint8)
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    features = torch.from_numpy(numbers.reshape(3, -1)).float()
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    library = cls.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        actual = clips.classifier(str(tmp_path), SHAPE, digest).eval()(features)
        for logits, clip in zip(actual, numbers, strict=True):
            given = processor(list(clip), return_tensors="pt")
            torch.testing.assert_close(logits, library(**given).logits[0], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="sha256 is"):
        clips.classifier(str(tmp_path), SHAPE, "0" * 64)
