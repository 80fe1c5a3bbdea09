"""Clips of video as numbers of a Parquet column: a row has frames, height, width, RGB of uint8.

Any class of transformers that classifies clips, with its own processor. The factory loads the
weights itself; their digest stands in `model.args`, so other weights have another fingerprint.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoModelForVideoClassification


class Clips(torch.nn.Module):
    """Takes the numbers of clips of one size."""

    def __init__(self, path: str, shape: list[int]) -> None:
        """Load a model directory; `shape` is frames, height and width of each clip."""
        super().__init__()
        self.shape = (-1, *shape, 3)
        options = {"local_files_only": True, "trust_remote_code": False}
        self.processor = AutoImageProcessor.from_pretrained(path, **options)
        self.model = AutoModelForVideoClassification.from_pretrained(
            path, use_safetensors=True, **options
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map float (N, frames * height * width * 3), 0 to 255, to logits (N, labels)."""
        clips = features.reshape(self.shape).to("cpu", torch.uint8).numpy()
        values = self.processor([list(clip) for clip in clips], return_tensors="pt").pixel_values
        return self.model(pixel_values=values.to(features)).logits


def classifier(path: str, shape: list[int], sha256: str) -> Clips:
    """Load the model, if its weights are those of the job: what `model.factory` names."""
    digest = hashlib.sha256(Path(path, "model.safetensors").read_bytes()).hexdigest()
    if digest != sha256:
        raise ValueError(f"model.safetensors: sha256 is {digest}, the job has {sha256}")
    return Clips(path, shape)
