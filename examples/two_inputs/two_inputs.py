"""A model of two inputs: how alike two photos are, by the vectors of EfficientNet-Lite0.

Run as a program it writes the pairs, each photo of a folder with the next one, as JSON lines:

    python examples/two_inputs/two_inputs.py demo-output/input/images demo-output/input/pairs
"""

from __future__ import annotations

import hashlib
import json
import sys
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from pipeline.models.zoo import efficientnet_lite0

# Weights that a factory loads itself are pinned here: see examples/custom_model.
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class Likeness(nn.Module):
    """The cosine between the vectors of two photos."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Map two batches of photos, float (N, 3, S, S) each, to (N, 1).

        The arguments have the names of the job's `source.inputs`.
        """
        vectors = self.classifier(torch.cat([left, right])).float().chunk(2)
        return torch.cosine_similarity(*vectors, dim=1).unsqueeze(1)


def likeness() -> nn.Module:
    """Build the model with its weights: what `model.factory` in the job file names."""
    card = efficientnet_lite0()
    path = Path(card.weights_path or "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise ValueError(f"{path.name}: sha256 is {digest}, expected {WEIGHTS_SHA256}")
    classifier = card.build()
    classifier.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return Likeness(classifier)


def write_pairs(photos: Path, folder: Path) -> None:
    """Write one line for each photo and the next one, with their paths below `photos`."""
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.*"))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "pairs.jsonl").open("w") as file:
        for left, right in pairwise(names):
            file.write(json.dumps({"left": {"path": left}, "right": {"path": right}}) + "\n")


if __name__ == "__main__":
    write_pairs(Path(sys.argv[1]), Path(sys.argv[2]))
