"""A model of your own: EfficientNet-Lite0 whose 1000 classes are merged into six groups.

The pipeline calls the factory with `model.args` (here none), once in every model actor. What it
returns maps float (N, 3, S, S), resized and normalised as the job says, to logits (N, number of
labels). The pipeline takes the softmax of these, so that log-probabilities come out as the
probabilities.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn

from pipeline.models.zoo import efficientnet_lite0

GROUPS = ("cat", "dog", "other animal", "food", "vehicle", "other")
"""In the order of `model.labels` in the job file."""

# The source of this module is part of a run's fingerprint, weights that it loads itself are not.
# Pinning them here closes the gap: other weights need another digest, and so another fingerprint.
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# ImageNet's classes are ordered: animals first, and dogs, domestic cats and food in one piece.
_ANIMALS, _DOGS, _CATS, _FOOD = range(398), range(151, 269), range(281, 286), range(924, 970)
_NOT_FOOD = {"hay", "tea cup"}
_VEHICLES = {
    *("airliner", "airship", "ambulance", "amphibious vehicle", "bullock cart", "catamaran"),
    *("combine harvester", "container ship", "convertible", "electric locomotive", "fire truck"),
    *("fireboat", "ford model t", "forklift", "freight car", "garbage truck", "go-kart"),
    *("golf cart", "gondola", "half-track", "high-speed train", "horse-drawn vehicle", "jeep"),
    *("kayak", "lifeboat", "limousine", "military aircraft", "minibus", "minivan", "moped"),
    *("motor scooter", "motorboat", "mountain bike", "moving van", "ocean liner", "pickup truck"),
    *("police van", "race car", "railroad car", "recreational vehicle", "rickshaw vehicle"),
    *("school bus", "schooner", "semi-trailer truck", "snowmobile", "snowplow", "space shuttle"),
    *("sports car", "station wagon", "steam locomotive", "submarine", "tandem bicycle", "tank"),
    *("taxicab", "tow truck", "tractor", "tram", "tricycle", "trimaran", "trolleybus"),
    *("unicycle", "yawl (boat)"),
}


def group_of(class_id: int, name: str) -> str:
    """Return the group of an ImageNet class."""
    if class_id in _CATS:
        return "cat"
    if class_id in _DOGS:
        return "dog"
    if class_id in _ANIMALS:
        return "other animal"
    if class_id in _FOOD and name not in _NOT_FOOD:
        return "food"
    return "vehicle" if name in _VEHICLES else "other"


class Grouped(nn.Module):
    """Sums the probabilities of a classifier's classes by group."""

    def __init__(self, classifier: nn.Module, groups: list[list[int]]) -> None:
        """Wrap a classifier; `groups` lists the class ids of each group."""
        super().__init__()
        self.classifier = classifier
        self.groups = groups

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float (N, 3, S, S) to log-probabilities (N, groups)."""
        # float32 also where the job asks for bf16: small probabilities are summed here.
        classes = torch.log_softmax(self.classifier(images).float(), dim=1)
        sums = [torch.logsumexp(classes[:, ids], dim=1) for ids in self.groups]
        return torch.stack(sums, dim=1)


def coarse_groups() -> nn.Module:
    """Build the model with its weights: what `model.factory` in the job file names."""
    card = efficientnet_lite0()
    path = Path(card.weights_path or "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise ValueError(f"{path.name}: sha256 is {digest}, expected {WEIGHTS_SHA256}")
    classifier = card.build()
    classifier.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    names = [group_of(class_id, name) for class_id, name in enumerate(card.labels or ())]
    groups = [[i for i, name in enumerate(names) if name == group] for group in GROUPS]
    return Grouped(classifier, groups)
