"""Choose the class of the installed transformers that a config names, and check its weights."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.core.errors import JobError
from pipeline.core.printable import first_names
from pipeline.models.directories.facts import CLIPS, DirectoryFacts, LibraryClass
from pipeline.models.directories.files import CONFIG, json_type_of, preview, read_object
from pipeline.models.directories.library import (
    MAX_LAYERS,
    base_of,
    check_numbers,
    config_of,
    encoder_of,
    head_of,
    named_class,
)
from pipeline.models.directories.loading import check_fit, leave_out, load, require_no_problems
from pipeline.models.directories.tensors import TensorHeader, read_headers
from pipeline.models.directories.trial import require_run
from pipeline.models.generate.spec import SPEECH, WRITERS
from pipeline.preprocessing.texts.text_settings import IDS

_MAIN = (IDS, "pixel_values", *CLIPS)
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
_MOST_NUMBERS = 1 << 29
"""Of weights that are loaded to run a class once."""
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
    module: Any = None
    """An instance of `built` on the device `meta`: shapes without numbers."""
    absent: tuple[str, ...] = ()
    """Tensors that no file has, and no prediction reads."""
    unused: tuple[str, ...] = ()
    """Tensors of the files that are of other heads."""
    width: int | None = None
    """Length of its vectors of texts; None: its config says it."""

    @property
    def has_towers(self) -> bool:
        """Tell whether it is two models, of images and of texts."""
        return hasattr(self.built, "get_image_features")

    @property
    def takes_text(self) -> bool:
        """Tell whether its first input is a text."""
        return bool(self.built.main_input_name == IDS)

    @property
    def takes_audio(self) -> bool:
        """Tell whether its first input is a clip of sound."""
        return self.built.main_input_name in CLIPS or self.config.model_type == CLAP

    @property
    def facts(self) -> LibraryClass:
        """Return what the builder needs to build the class again."""
        return LibraryClass(self.at, self.built.__name__, self.head, self.absent)

    def directory(self, input_name: str, tasks: tuple[str, ...], **more: Any) -> DirectoryFacts:
        """Return the facts of a directory of this class.

        Args:
            input_name: The registered name of the input that it takes.
            tasks: What its outputs serve.
            more: Other fields of the facts.
        """
        fields: dict[str, Any] = {"format_name": "transformers", "module": self.facts, **more}
        if self.unused:
            line = f"{CONFIG}: tensors of other heads are not used: {first_names(self.unused)}"
            fields["notes"] = (*fields.get("notes", ()), line)
        return DirectoryFacts(
            architecture=self.built.__name__, input=input_name, tasks=tasks, **fields
        )


def choose(folder: Path) -> ModelClass:
    """Choose the class that a config names, and check that the weights fit and that it runs.

    Args:
        folder: A view of the directory.

    Raises:
        JobError: The library has no such class, the weights do not fit, or rows would fail.
    """
    values, headers = read_object(folder, CONFIG), read_headers(folder)
    check_numbers(values, max(len(headers), MAX_LAYERS))
    config = config_of(values)
    named = named_class(_architecture(values, config), config)
    head = head_of(named, config)
    built = named if head != "none" else encoder_of(named, config)
    require_one_input(built, config, head)
    return fitted(folder, ModelClass("", values, config, named, built, head), headers)


def fitted(folder: Path, chosen: ModelClass, headers: Mapping[str, TensorHeader]) -> ModelClass:
    """Check that the weights of a class fit, and that it runs; see `choose`.

    Args:
        folder: A view of the directory.
        chosen: The class, without a module.
        headers: Of the weights.
    """
    built, config, head = chosen.built, chosen.config, chosen.head
    module, missing, unused = check_fit(built, config, headers, head)
    leave_out(module, missing)
    is_small = sum(header.num_values for header in headers.values()) < _MOST_NUMBERS
    load_it = partial(load, built, config, folder / chosen.at, missing) if is_small else None
    run = require_run(module, head, is_whole=not missing, load=load_it)
    require_no_problems(built, () if run.is_done else missing)
    return replace(chosen, module=module, absent=missing, unused=unused, width=run.width)


def _architecture(values: Mapping[str, Any], config: Any) -> str:
    """Return the class that a config names; if it names none, the encoder of its model type."""
    names = values.get("architectures")
    if names is None and (base := base_of(config)) is not None:
        return str(base.__name__)
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise JobError(
            f"model.path: {CONFIG}: architectures is {preview(names)}, expected a list of one "
            f"class; add the class of transformers {version('transformers')} that saved the model"
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
    """Refuse a class that takes other data of a row than its main input.

    Args:
        cls: A class of transformers.
        config: Its configuration.
        head: As `LibraryClass.head`.

    Raises:
        JobError: It takes other data; names it.
    """
    main, taken = cls.main_input_name, inspect.signature(cls.forward).parameters
    is_whole_text = _IN_TEXT.search(config.to_json_string(use_diff=False)) is not None
    has_towers = hasattr(cls, "get_image_features") or hasattr(cls, "get_audio_features")
    wanted = {
        name
        for name in taken
        if _DATA.fullmatch(name)
        and name != main
        and not (is_whole_text and ("pixel_values" in name or "input_" in name))
        # It writes to one input, or its towers take one each.
        and not ((head in WRITERS or has_towers) and name in _MAIN)
    }
    if head == SPEECH and main not in CLIPS:
        wanted |= {"clips among the tokens of a prompt"}
    if main not in _MAIN:
        wanted |= {main}
    if wanted:
        raise JobError(
            f"model.path: {CONFIG}: {cls.__name__} takes more of a row than a text, an image or a "
            f"clip, one of which a directory gets: {', '.join(sorted(wanted))}; {_WAY_OUT}"
        )
