"""Facts about torchvision's models, cached per node so that the driver need not import torch."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipeline.core.cache.node_cache import cached_folder, key_of
from pipeline.core.errors import InfraError
from pipeline.preprocessing.images.transform import TransformSpec

if TYPE_CHECKING:
    import torch

_FILE = "facts.json"
_DIGEST = re.compile(r"[-_]([0-9a-f]{8,})\.pth$")
"""In the address of weights: how their SHA-256 begins."""
_WITHOUT_EPS = "COCO_V1"
"""Weights that detectors of `overwrite_eps` were trained to with a batch normalisation without an
epsilon; torchvision takes it away when it loads them."""


def torchvision_facts(name: str) -> dict[str, Any] | None:
    """Return `family` of a model and its own `weights`, the first published first; None if unknown.

    Weights have `name`, `sha256` (how it begins), `transform` (a dict, or None) and `labels`.
    """

    def write(folder: Path) -> None:
        (folder / _FILE).write_text(json.dumps(_ask(name)))

    try:
        folder = cached_folder(key_of(["torchvision facts", 4, name]), write)
        return json.loads((folder / _FILE).read_text())  # type: ignore[no-any-return]
    except (OSError, InfraError):
        return _ask(name)  # the node cache is not writable


def _ask(name: str) -> dict[str, Any] | None:
    models = _models()
    if name not in models.list_models():
        return None
    weights = []
    for entry in models.get_model_weights(name):
        transform = _transform(entry.transforms())
        weights.append(
            {
                "name": entry.name,
                "sha256": _digest(entry),
                "transform": transform and transform.to_dict(),
                "labels": list(entry.meta.get("categories", ())),
            }
        )
    return {"weights": weights, "family": _family(models.get_model_builder(name))}


def _digest(weights: Any) -> str:
    match = _DIGEST.search(weights.url)
    return match[1] if match else "unknown"


def _family(builder: Any) -> str:
    """Return the package of a model below torchvision.models; '' for classifiers."""
    parts = str(builder.__module__).split(".")
    return parts[2] if len(parts) > 3 else ""


def _transform(preset: Any) -> TransformSpec | None:
    if type(preset).__name__ == "ObjectDetection":
        # Detectors resize and normalise images themselves, each by its own size: as they are is
        # exact. What they resize to depends on the shape, so no fixed size would be.
        mean, std = (0.0,) * 3, (1.0,) * 3
        return TransformSpec(None, None, None, mean, std, resize="none")
    if not (hasattr(preset, "crop_size") and hasattr(preset, "mean")):
        return None  # not an image classification preset: the job must give the transform
    return TransformSpec(
        size_px=int(preset.crop_size[0]),
        resize_px=int(preset.resize_size[0]),
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def torchvision_module(
    name: str, weights_sha256: str | None = None, **options: Any
) -> torch.nn.Module:
    """Build an architecture without weights; nothing is downloaded for a backbone either.

    Args:
        name: Of torchvision.
        weights_sha256: Digest of the file that will be loaded.
    """
    models = _models()
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        options["weights_backbone"] = None
    module: torch.nn.Module = models.get_model(name, weights=None, **options)
    builder = inspect.unwrap(models.get_model_builder(name))
    digests = [
        _digest(entry) for entry in models.get_model_weights(name) if entry.name == _WITHOUT_EPS
    ]
    if "overwrite_eps" in builder.__code__.co_names and (weights_sha256 or "").startswith(
        tuple(digests)
    ):
        _set_eps(module, 0.0)
    return module


def _set_eps(module: torch.nn.Module, eps: float) -> None:
    from torch.nn import BatchNorm2d

    for part in module.modules():
        if isinstance(part, BatchNorm2d):
            part.eps = eps


def _models() -> Any:
    """Import torchvision.models."""
    with contextlib.suppress(ImportError), _deferred_compiler():
        return importlib.import_module("torchvision.models")
    return importlib.import_module("torchvision.models")  # it uses more of the compiler


@contextlib.contextmanager
def _deferred_compiler() -> Iterator[None]:
    """Defer the import of torch's compiler by torchvision, which is 1.0 s of its 1.2 s.

    torchvision uses one function of it, in one operation of detectors; its first call imports it.
    """
    name = "torch._dynamo.utils"
    if name in sys.modules:
        yield
        return
    stand_in = ModuleType(name)
    stand_in.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


def _is_compile_supported(device_type: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return bool(is_compile_supported(device_type))
