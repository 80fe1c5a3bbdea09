"""What the peers share: the model, the transform, the files, and what `steady` means."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

CORES = os.cpu_count() or 1
DEVICE = os.environ.get("PEERS_DEVICE", "cpu")
"""Where the peers' models run."""
DTYPE = os.environ.get("PEERS_DTYPE", "float32")
"""What they compute in: `float32`, `bfloat16` or `float16`."""
GPUS = float(DEVICE != "cpu")
"""Cards of an actor; there is one actor with one, and otherwise one a core."""
BATCH, ACTORS = (128, 1) if GPUS else (32, max(1, CORES - 1))


def build(name: str, weights: str) -> tuple[Any, Any]:
    """The module and its transform."""
    import torch
    from torchvision.models import get_model

    from pipeline.preprocessing.images.transform import TransformSpec

    if name == "efficientnet-lite0":
        from pipeline.models.zoo import efficientnet_lite0

        card = efficientnet_lite0()
        module = card.build()
        module.load_state_dict(torch.load(card.weights_path, weights_only=True))
        return module.eval(), card.transform
    from safetensors.torch import load_file

    module = get_model(name, weights=None)
    module.load_state_dict(load_file(weights))
    spec = TransformSpec(224, 256, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return module.eval(), spec


def files_of(images: str) -> list[str]:
    return sorted(str(path) for path in Path(images).rglob("*.*"))


def torchvision_transform(spec: Any) -> Any:
    """The transform as torchvision's own pages have it, from a Pillow image to float32."""
    from torchvision import transforms as T
    from torchvision.transforms import InterpolationMode

    return T.Compose(
        [
            T.Resize(spec.resize_px, InterpolationMode(spec.interpolation)),
            T.CenterCrop(spec.size_px),
            T.ToTensor(),
            T.Normalize(spec.mean, spec.std),
        ]
    )


def best_class(module: Any, batch: Any) -> Any:
    """The class and the score of each row."""
    import torch

    kind = getattr(torch, DTYPE)
    with torch.inference_mode():
        found = module.to(DEVICE, kind)(batch.to(DEVICE, kind))
        return torch.softmax(found.float(), 1).cpu().max(1)


def steady_rate(ends: Sequence[float] | np.ndarray) -> float | None:
    """Rows/s of the second half of the rows, from the time at which each row was predicted.

    What was decoded while the model still loaded is used up by then. The rows that share the time
    at which the half begins do not count. None where all rows share it.
    """
    ordered = np.sort(np.asarray(ends, np.float64))
    if not len(ordered):
        return None
    begin = ordered[len(ordered) // 2]
    rows = int((ordered > begin).sum())
    return rows / float(ordered[-1] - begin) if rows else None
