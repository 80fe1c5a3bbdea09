"""Choose the class of the installed transformers that a config names, and check its weights."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError
from pipeline.models.directories.facts import WRITERS, DirectoryFacts, LibraryClass
from pipeline.models.directories.json_files import json_type_of, preview, read_object
from pipeline.models.directories.library import base_of, config_of, encoder_of, head_of, named_class
from pipeline.models.directories.loading import check_fit
from pipeline.models.directories.tensors import read_headers

if TYPE_CHECKING:
    import torch


CONFIG = "config.json"
_CLIPS = ("input_values", "input_features")
CLAP = "clap"
"""The model type of two models, of clips and of texts, of which a job takes the first."""
_DATA = re.compile(
    r"(visual_)?bbox|(\w+_)?pixel_values(_\w+)?|image|xpath_\w+|entity_ids|visual_(feats|embeds)"
    r"|(protein_)?input_ids|input_(features|values)|input_(points|boxes|(shape|pronunciation)_ids)"
    r"|\w+_feats|spatial_shapes"
)
"""Parameters of `forward` that are data of a row, or places in it."""
_IN_TEXT = re.compile(r'"(image|audio)_token_(id|index)"')
"""Keys of models that put images or clips in the place of tokens: a text without them is whole."""
_WAY_OUT = "model.factory, with source.inputs, gives a module several inputs"


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
    def takes_audio(self) -> bool:
        """Tell whether its first input is a clip of sound."""
        return self.built.main_input_name in _CLIPS or self.config.model_type == CLAP

    @property
    def facts(self) -> LibraryClass:
        """Return what the builder needs to build the class again."""
        return LibraryClass(self.at, self.named.__name__, self.built.__name__, self.head)

    def directory(self, input_name: str, tasks: tuple[str, ...], **more: Any) -> DirectoryFacts:
        """Return the facts of a directory of this class.

        Args:
            input_name: The registered name of the input that it takes.
            tasks: What its outputs serve.
            more: Other fields of the facts.
        """
        fields: dict[str, Any] = {"format_name": "transformers", "module": self.facts, **more}
        return DirectoryFacts(
            architecture=self.built.__name__, input=input_name, tasks=tasks, **fields
        )


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
    names = values.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise JobError(
            f"model.path: {CONFIG}: architectures is {preview(names)}, expected a list of one class"
        )
    return names[0]


def width_of(config: Any, *keys: str) -> int:
    """Return the length of a vector, by the first of the keys that a config has.

    Raises:
        JobError: It has none.
    """
    for key in keys:
        width = getattr(config, key, None)
        width = width[-1] if isinstance(width, list | tuple) and width else width
        if type(width) is int:
            return width
    raise JobError(f"model.path: {CONFIG}: {keys[0]} is {json_type_of(width)}, expected a number")


def require_one_input(cls: Any, config: Any, head: str) -> None:
    """Refuse a class that needs more than its main input.

    Args:
        cls: A class of transformers.
        config: Its configuration.
        head: As `LibraryClass.head`.

    Raises:
        JobError: It takes other data; names it.
    """
    main, taken = cls.main_input_name, inspect.signature(cls.forward).parameters
    wanted = {name for name in taken if _DATA.fullmatch(name)} - {main}
    if _IN_TEXT.search(config.to_json_string(use_diff=False)):
        wanted -= {name for name in wanted if "pixel_values" in name or "input_" in name}
    if head in WRITERS or hasattr(cls, "get_image_features") or hasattr(cls, "get_audio_features"):
        # It writes to one input, or its towers take one each.
        wanted -= {"input_ids", "input_features", "pixel_values"}
    required = {name for name, parameter in taken.items() if _is_required(parameter)}
    wanted |= required - {"self", main}
    if main == "input_ids" and getattr(config, "type_vocab_sizes", None):
        wanted.add("rows and columns of a table")
    if main == "pixel_values" and getattr(config, "num_frames", None):
        wanted.add("num_frames images of a video")
    if wanted:
        raise JobError(
            f"model.path: config.json: {cls.__name__} takes more of a row than {main}, which a "
            f"directory gets: {', '.join(sorted(wanted))}; {_WAY_OUT}"
        )
    draws = "noise" in taken and "is_mae" not in inspect.signature(cls.__init__).parameters
    if draws and getattr(config, "mask_ratio", None):
        raise JobError(
            f"model.path: config.json: {cls.__name__} hides patches by chance, mask_ratio is "
            f"{config.mask_ratio}: its vectors are random; put mask_ratio 0 into config.json"
        )


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind not in (
        parameter.VAR_POSITIONAL,
        parameter.VAR_KEYWORD,
    )
