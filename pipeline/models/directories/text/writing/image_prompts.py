"""Models that read an image among the tokens of a prompt: what stands for it there.

A family is a row of FAMILIES, and one of `library._WRITERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.core.errors import JobError
from pipeline.models.directories.facts import GenerationFacts
from pipeline.models.directories.json_files import checked, preview
from pipeline.models.directories.text.text_facts import TOKENIZER, load_tokenizer
from pipeline.models.directories.text.writing.generation_config import (
    Reader,
    facts_of,
    most_places,
)
from pipeline.preprocessing.texts.tokenizer import special_around

_CONFIG = "config.json"
_MOST_PLACES = 1 << 20


class _Family(NamedTuple):
    """How models of a type read an image, one tile of `image_size`, in a prompt."""

    num_tokens: Callable[[Any, int], int]
    """Configuration, and patches of an image -> how many tokens an image is."""
    around: tuple[str, str] = ("", "")
    """What the library's processor writes before and behind them."""
    has_tiles: bool = False
    """Whether `pixel_values` have an axis of the tiles of a row: (B, 1, 3, H, W)."""


def _of_llava(config: Any, patches: int) -> int:
    # CLIP has the vector of a class beside those of the patches; the first vector is left out.
    has_class = "clip" in config.vision_config.model_type
    return int(patches + has_class - (config.vision_feature_select_strategy == "default"))


def _of_idefics3(config: Any, patches: int) -> int:
    scale = int(config.scale_factor)
    return patches // scale**2 if scale > 0 else 0


_IDEFICS3 = _Family(
    _of_idefics3,
    ("<fake_token_around_image><global-img>", "<fake_token_around_image>"),
    has_tiles=True,
)
FAMILIES: Mapping[str, _Family] = {
    "idefics3": _IDEFICS3,
    "llava": _Family(_of_llava),
    "smolvlm": _IDEFICS3,
}
"""By the model type."""


def image_prompt_facts(folder: Path, read: Reader, config: Any) -> GenerationFacts:
    """Return how a model writes that reads an image in its prompt.

    The prompt comes behind what the tokenizer begins a text with.

    Raises:
        JobError: The configuration is of no such image, or the tokenizer has no token for it.
    """
    family, tokenizer = FAMILIES[config.model_type], load_tokenizer(folder / TOKENIZER)
    begins, _ = special_around(tokenizer)
    facts = facts_of(read, config, ())
    token, vision = config.image_token_id, config.vision_config
    is_token = type(token) is int and 0 <= token < tokenizer.get_vocab_size()
    name = tokenizer.id_to_token(token) if is_token else None
    if name is None:
        raise JobError(
            f"model.path: {_CONFIG}: image_token_id is {preview(token)}, expected the id of a "
            f"token of {TOKENIZER}"
        )
    most = most_places(config) or _MOST_PLACES
    keys = ("image_size", "patch_size")
    sizes = [
        checked(getattr(vision, key, None), key, f"{_CONFIG}: vision_config", int, gt=0)
        for key in keys
    ]
    count = family.num_tokens(config, (sizes[0] // sizes[1]) ** 2)
    if not 0 < count < min(most, _MOST_PLACES):
        raise JobError(
            f"model.path: {_CONFIG}: vision_config: an image of {count} tokens, beside {most} "
            "places; expected fewer, at least one"
        )
    before, after = family.around
    return replace(
        facts,
        rules=replace(facts.rules, start=tuple(begins)),
        most_places=most,
        note=f"{facts.note}; {count} tokens of the prompt are the image",
        image_mark=name,
        image_text=f"{before}{name * count}{after}",
        image_px=sizes[0],
    )
