"""Describe names that are not models here: a folder of another library, a name of a hub.

Nothing in the folder is run or loaded: only file names and one small JSON file are read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.core.printable import clean_message

_MAX_CONFIG_BYTES = 1 << 20
_OWN = "a function of your own that returns the nn.Module (model.factory, examples/custom_model)"
_FEATURES = (
    "encode the rows first to a column of fixed-size lists of numbers (source.features), and name "
    f"{_OWN}"
)
_TEXT = f"Text is not read directly. To run it: {_FEATURES}"
_IMAGES = f"To run it: name {_OWN}, built by {{}}, and give transform what its preprocessing says"
_SPEECH_OR_TEXT = ("text_config", "vocab_size")
_VISION = ("image_size", "vision_config", "patch_size", "num_channels")


def describe_name(name: str) -> str | None:
    """Return what a name means elsewhere, and how to run that model here; None if unknown."""
    folder = Path(name).expanduser()
    try:
        if folder.is_dir():
            return f"{_describe_folder(folder)}. {_advice(folder)}"
        if folder.is_file():
            return f"is a file. Write model.weights: {name} and name its architecture"
    except (OSError, ValueError):
        return None
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return (
            "looks like a name on a model hub, and nothing is downloaded: fetch the model "
            f"yourself. To run it: name {_OWN}"
        )
    return None


def _describe_folder(folder: Path) -> str:
    config = _config(folder)
    if (folder / "MLmodel").is_file():
        return "is an MLflow model, which can run code when it is loaded"
    if (folder / "saved_model.pb").is_file():
        return "is a TensorFlow SavedModel"
    if (folder / "modules.json").is_file():
        return "is a sentence-transformers folder, which is not supported directly"
    if "pretrained_cfg" in config or ("architecture" in config and "num_classes" in config):
        return f"is a timm folder ({_text(config.get('architecture'))}), not supported directly"
    if config:
        names = config.get("architectures")
        first = names[0] if isinstance(names, list) and names else config.get("model_type")
        reads_images = _reads_images(config)
        kind = "unknown input" if reads_images is None else "images" if reads_images else "text"
        what = f"config.json: {_text(first)}, {kind}"
        return f"is a Hugging Face folder ({what}), not supported directly"
    return "is a folder, and a model is named by an entry point or a torchvision name"


def _advice(folder: Path) -> str:
    config = _config(folder)
    if (folder / "MLmodel").is_file() or (folder / "saved_model.pb").is_file():
        return 'Save its PyTorch weights alone: torch.save(model.state_dict(), "w.pth")'
    if (folder / "modules.json").is_file():
        return _TEXT
    if "pretrained_cfg" in config or ("architecture" in config and "num_classes" in config):
        name = _text(config.get("architecture"))
        built = f"timm.create_model({name!r}, num_classes={_text(config.get('num_classes'))})"
        return _IMAGES.format(built) + f"; model.weights: {folder}/model.safetensors"
    if config and _reads_images(config) is False:
        return _TEXT
    if config:
        return _IMAGES.format("transformers' from_pretrained with this folder, giving .logits")
    return f"To run it: name {_OWN}"


def _reads_images(config: dict[str, Any]) -> bool | None:
    if any(key in config for key in _VISION):
        return True
    return False if any(key in config for key in _SPEECH_OR_TEXT) else None


def _config(folder: Path) -> dict[str, Any]:
    try:
        with (folder / "config.json").open("rb") as file:
            found = json.loads(file.read(_MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(value: Any) -> str:
    return clean_message(str(value))[:60] if isinstance(value, str | int) else "unknown"
