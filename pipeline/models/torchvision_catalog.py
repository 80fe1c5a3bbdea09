"""Facts about torchvision's models, cached per node so that the driver need not import torch."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.errors import InfraError
from pipeline.core.node_cache import cached_folder, key_of
from pipeline.models.directories.probes import images
from pipeline.preprocessing.images.resizing import resize_and_crop
from pipeline.preprocessing.images.transform import TransformSpec

if TYPE_CHECKING:
    import torch

_FILE = "facts.json"
_DIGEST = re.compile(r"[-_]([0-9a-f]{8,})\.pth$")
"""In the address of weights: how their SHA-256 begins."""
_SAME = 2.5 / 255
"""Largest difference of a pixel: Pillow, which presets use, and torch round differently."""


def torchvision_facts(name: str) -> dict[str, Any] | None:
    """Return the facts of a model; None if it is unknown.

    These are its `family`, the `url` of its usual weights, and all its published `weights`, which
    have `name`, `sha256` (how it begins), `transform` (a dict, or None) and `labels`.
    """

    def write(folder: Path) -> None:
        (folder / _FILE).write_text(json.dumps(_ask(name)))

    try:
        folder = cached_folder(key_of(["torchvision facts", 5, name]), write)
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
                "labels": list(entry.meta.get("categories") or ()),
            }
        )
    usual = getattr(models.get_model_weights(name), "DEFAULT", None)
    family = _family(models.get_model_builder(name))
    return {"weights": weights, "family": family, "url": usual and usual.url}


def _digest(weights: Any) -> str:
    match = _DIGEST.search(weights.url)
    return match[1] if match else "unknown"


def _family(builder: Any) -> str:
    """Return the package of a model below torchvision.models; '' for classifiers."""
    parts = str(builder.__module__).split(".")
    return parts[2] if len(parts) > 3 else ""


def _transform(preset: Any) -> TransformSpec | None:
    """Return the transform that makes the pixels that a preset of torchvision makes; None if none.

    Detectors resize and normalise images themselves, each by its own size: those get images as they
    are. What a preset says of itself is not believed, but tried on four images.
    """
    specs = [TransformSpec(None, None, None, (0.0,) * 3, (1.0,) * 3, resize="none")]
    with contextlib.suppress(AttributeError):
        specs.append(
            TransformSpec(
                size_px=int(preset.crop_size[0]),
                resize_px=int(preset.resize_size[0]),
                interpolation=preset.interpolation.value,
                mean=tuple(preset.mean),
                std=tuple(preset.std),
            )
        )
    return next((spec for spec in specs if _agrees(spec, preset)), None)


def _agrees(spec: TransformSpec, preset: Any) -> bool:
    import torch
    from PIL import Image

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    for image in images():
        pixels = Image.open(BytesIO(image)).convert("RGB")
        try:
            expected = preset(pixels) * std + mean
        except Exception:  # noqa: BLE001  # it takes clips, or pairs of images
            return False
        made = resize_and_crop(torch.from_numpy(np.array(pixels)).permute(2, 0, 1), spec) / 255
        if made.shape != expected.shape or (made - expected).abs().max() > _SAME:
            return False
    return True


def torchvision_module(
    name: str, weights_sha256: str | None, state: Mapping[str, Any] | None, **options: Any
) -> tuple[torch.nn.Module, bool]:
    """Build a model, with its weights if torchvision publishes them; nothing is downloaded.

    The builder gets published weights as such, so that it decides what they need beside tensors:
    normalisation of its own, sizes, auxiliary heads, names of old files, an epsilon. In the place
    of their download it is given the state.

    Args:
        weights_sha256: Digest of the weights file.
        options: Options of the builder, such as `num_classes`.

    Returns:
        The module, and whether it has the state; the caller loads other weights.
    """
    models = _models()
    builder = models.get_model_builder(name)
    entries = models.get_model_weights(name) if state is not None else ()
    weights = next((e for e in entries if (weights_sha256 or "").startswith(_digest(e))), None)
    if weights is None:
        if "weights_backbone" in inspect.signature(builder).parameters:
            options["weights_backbone"] = None
        return builder(weights=None, **options), False
    with _in_place_of_download(weights, state):
        return builder(weights=weights, **options), True


@contextlib.contextmanager
def _in_place_of_download(weights: Any, state: Any) -> Iterator[None]:
    """Make `get_state_dict` of published weights return a state.

    This replaces a public method of torchvision, of one object and for the body alone. The plain
    way, without weights and with `load_state_dict` afterwards, is that of all other weights.
    """
    weights.get_state_dict = lambda **_: state
    try:
        yield
    finally:
        del weights.get_state_dict


def _models() -> Any:
    """Import torchvision.models without torch's compiler, which is three quarters of the time.

    torchvision uses one function of it, in one operation of detectors; its first call imports it.
    """
    name = "torch._dynamo.utils"
    if name not in sys.modules:
        stand_in: Any = ModuleType(name)
        stand_in.is_compile_supported = lambda d: import_module(name).is_compile_supported(d)
        sys.modules[name] = stand_in
        try:
            return import_module("torchvision.models")
        except ImportError:  # it uses more of the compiler
            pass
        finally:
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]
    return import_module("torchvision.models")
