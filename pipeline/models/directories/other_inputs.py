"""Refuse classes that take more of a row than a job gives: the library fills it in silently."""

from __future__ import annotations

import inspect
import re
from typing import Any

from pipeline.core.errors import JobError
from pipeline.models.directories.facts import WRITERS

_DATA = re.compile(
    r"(visual_)?bbox|(\w+_)?pixel_values(_\w+)?|image|xpath_\w+|entity_ids|visual_(feats|embeds)"
    r"|(protein_)?input_ids|input_(features|values)|input_(points|boxes|(shape|pronunciation)_ids)"
    r"|\w+_feats|spatial_shapes"
)
"""Parameters of `forward` that are data of a row, or places in it."""
_IN_TEXT = re.compile(r'"(image|audio)_token_(id|index)"')
"""Keys of models that put images or clips in the place of tokens: a text without them is whole."""
_WAY_OUT = "model.factory, with source.inputs, gives a module several inputs"


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
    wanted |= {name for name, each in taken.items() if _is_required(each)} - {"self", main}
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
