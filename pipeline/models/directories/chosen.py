"""Choose the class of the installed transformers that a config names, and check its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError
from pipeline.models.directories.facts import LibraryClass
from pipeline.models.directories.json_files import kind_of, preview, read_object
from pipeline.models.directories.library import base_of, config_of, encoder_of, head_of, named_class
from pipeline.models.directories.loading import check_fit
from pipeline.models.directories.other_inputs import require_one_input
from pipeline.models.directories.tensors import read_headers

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
_CLIPS = ("input_values", "input_features")
CLAP = "clap"
"""The model type of two models, of clips and of texts, of which a job takes the first."""


@dataclass(frozen=True)
class ModelClass:
    """The class that a config names, checked against the weights."""

    at: str
    """Where config and weights lie: '' or a folder ending in `/`."""
    values: Mapping[str, Any]
    """The content of config.json."""
    config: Any
    named: Any
    """The class that `architectures` names."""
    built: Any
    """The class that is built."""
    head: str
    """As `LibraryClass.head`."""
    module: torch.nn.Module
    """An instance of `built`; its numbers mean nothing."""

    @property
    def has_towers(self) -> bool:
        """Tell whether it is two models, of images and of texts."""
        return hasattr(self.built, "get_image_features")

    @property
    def takes_text(self) -> bool:
        """Tell whether its first input is a text."""
        return bool(self.built.main_input_name == "input_ids")

    @property
    def hears(self) -> bool:
        """Tell whether its first input is a clip of sound."""
        return self.built.main_input_name in _CLIPS or self.config.model_type == CLAP

    @property
    def facts(self) -> LibraryClass:
        """Return what the builder needs to build the class again."""
        return LibraryClass(self.at, self.named.__name__, self.built.__name__, self.head)


def choose(folder: Path, at: str = "", *, is_encoder: bool = False) -> ModelClass:
    """Choose the class that a config names, and check that the weights fit.

    Args:
        at: Where config and weights lie: '' or a folder ending in `/`.
        is_encoder: Another file says that embeddings are wanted, whatever the head.

    Raises:
        JobError: The library has no such class, or the weights do not fit.
    """
    values = read_object(folder, at + CONFIG)
    headers = read_headers(folder / at)
    config = config_of(values, len(headers))
    if is_encoder and values.get("architectures") is None and base_of(config) is not None:
        named = base_of(config)
    else:
        named = named_class(_architecture(values), config)
    head = "none" if is_encoder else head_of(named, config)
    built = named if head != "none" else encoder_of(named, config, is_declared=is_encoder)
    if built.main_input_name not in ("input_ids", "pixel_values", *_CLIPS):
        raise JobError(
            f"model.path: {CONFIG}: {named.__name__} takes {built.main_input_name}; expected a "
            "model of texts, images or clips of sound"
        )
    require_one_input(built, config, head)
    module = check_fit(built, named, config, headers)
    return ModelClass(at, values, config, named, built, head, module)


def _architecture(values: Mapping[str, Any]) -> str:
    found = values.get("architectures")
    if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], str):
        raise JobError(
            f"model.path: {CONFIG}: architectures is {preview(found)}, expected a list of one class"
        )
    return found[0]


def width_of(config: Any, *keys: str) -> int:
    """Return the length of a vector, by the first of the keys that a config has.

    Raises:
        JobError: It has none.
    """
    for key in keys:
        found = getattr(config, key, None)
        found = found[-1] if isinstance(found, list | tuple) and found else found
        if type(found) is int:
            return found
    raise JobError(f"model.path: {CONFIG}: {keys[0]} is {kind_of(found)}, expected a number")
