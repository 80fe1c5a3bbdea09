"""Choose the class of transformers that a config names: check its weights, run it, name its tasks.

It runs once on shapes alone, so that a class that would fail on each row is refused before. Its
head and its config give tasks, labels and the activation of scores.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.core.errors import JobError
from pipeline.core.printable import first_names
from pipeline.models.directories.facts import (
    CLIPS,
    PROMPTED,
    RAW,
    SPARSE,
    DirectoryFacts,
    LibraryClass,
)
from pipeline.models.directories.files import (
    CONFIG,
    QUANTISED,
    json_type_of,
    preview,
    read_object,
    read_value,
)
from pipeline.models.directories.library import (
    FACTORY_ADVICE,
    MAX_LAYERS,
    base_of,
    check_fit,
    check_numbers,
    config_of,
    encoder_of,
    head_of,
    is_masked,
    leave_out,
    load,
    named_class,
    quiet,
    refused,
    require_no_problems,
)
from pipeline.models.directories.tensors import TensorHeader, read_headers
from pipeline.models.generate.spec import CAUSAL, SPEECH, WRITERS
from pipeline.preprocessing.texts.text_settings import IDS, MASK

if TYPE_CHECKING:
    import torch

_MAIN = (IDS, "pixel_values", *CLIPS)
CLAP = "clap"
"""Model type of two towers, for clips and for texts; a job uses the first."""
_DATA = re.compile(
    r"(visual_)?bbox|(\w+_)?pixel_values(_\w+)?|image|xpath_\w+|entity_ids|visual_(feats|embeds)"
    r"|(protein_)?input_ids|input_(features|values)|input_(points|boxes|(shape|pronunciation)_ids)"
    r"|\w+_feats|spatial_shapes"
)
"""Parameters of `forward` that are data of a row, or places in it."""
_IN_TEXT = re.compile(r'"(image|audio)_token_(id|index)"')
"""Keys of models that put images or clips in the place of tokens: a text without them is whole."""
_OF_SEVERAL = (*WRITERS, PROMPTED)
_MOST_NUMBERS = 1 << 29
"""Limit of weights that are loaded to run a class once."""
_WAY_OUT = "model.factory, with source.inputs, gives a module several inputs"
_GIVES: Mapping[str, tuple[str, ...]] = {
    "detection": ("logits", "pred_boxes"),
    "none": ("last_hidden_state", "image_embeds", "text_embeds", "audio_embeds"),
}
"""Head -> outputs that are read: all of a detector, otherwise one; of other heads `logits`."""
_TOKENS, _USUAL_PX, _SAMPLES = 8, 224, 16_000
_PROBLEMS = {
    "multi_label_classification": ("multilabel", "classify"),
    "regression": ("regress", "score"),
    "single_label_classification": ("classify", "multilabel"),
}
_OLD_ACTIVATION = "sbert_ce_default_activation_function"
_ENTAILS = "entail"


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
    def has_text_tower(self) -> bool:
        """Tell whether one of two models is of texts alone."""
        return hasattr(self.built, "get_text_features")

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
        """Return the facts from which the class is built again."""
        return LibraryClass(self.at, self.built.__name__, self.head, self.absent)

    def directory(self, input_name: str, tasks: tuple[str, ...], **more: Any) -> DirectoryFacts:
        """Return the facts of a directory of this class.

        Args:
            input_name: The registered name of the input that it takes.
            tasks: What its outputs serve.
        """
        fields: dict[str, Any] = {"format_name": "transformers", "module": self.facts, **more}
        if self.unused:
            line = f"{CONFIG}: tensors of other heads are not used: {first_names(self.unused)}"
            fields["notes"] = (*fields.get("notes", ()), line)
        return DirectoryFacts(
            architecture=self.built.__name__, input=input_name, tasks=tasks, **fields
        )


def choose(folder: Path, at: str = "", *, head: str = "", is_quantised: bool = False) -> ModelClass:
    """Choose the class that a config names, and check that the weights fit and that it runs.

    Args:
        at: Where config and weights lie: '' or a folder ending in `/`.
        head: RAW or SPARSE: how outputs are read, whatever the class is for.
        is_quantised: Whether the weights are quantised, so that the class itself cannot run.

    Raises:
        JobError: The library has no such class, the weights do not fit, or rows would fail.
    """
    values, headers = read_object(folder, at + CONFIG), read_headers(folder / at)
    check_numbers(values, max(len(headers), MAX_LAYERS))
    config = config_of(values)
    named = named_class(_architecture(values, config), config)
    if head == SPARSE and not is_masked(named, config):
        raise JobError(
            f"model.path: {at}{CONFIG}: task 'sparse' needs a masked language model, and "
            f"{named.__name__} is none; task 'embed' gives a vector of it"
        )
    head = head or head_of(named, config)
    built = named if head != "none" else encoder_of(named, config)
    if built is None:
        built, head = named, RAW
    require_one_input(built, config, head)
    if is_quantised:
        if head != CAUSAL:
            raise JobError(f"model.path: {at}{CONFIG}: {named.__name__}: {QUANTISED}")
        module, *_ = check_fit(built, config, headers, head, is_quantised=True)
        return ModelClass(at, values, config, named, built, head, module)
    return fitted(folder, ModelClass(at, values, config, named, built, head), headers)


def fitted(folder: Path, chosen: ModelClass, headers: Mapping[str, TensorHeader]) -> ModelClass:
    """Check that the weights of a class fit, and that it runs; see `choose`."""
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
    """Refuse a class that needs other data of a row than its main input.

    Raises:
        JobError: It takes other data; names it.
    """
    main, taken = cls.main_input_name, inspect.signature(cls.forward).parameters
    is_whole_text = _IN_TEXT.search(config.to_json_string(use_diff=False)) is not None
    has_towers = hasattr(cls, "get_image_features") or hasattr(cls, "get_audio_features")
    wanted = {
        name
        for name, parameter in taken.items()
        if name not in (main, "self")
        and (parameter.default is parameter.empty or (_DATA.fullmatch(name) and not is_whole_text))
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        # It writes to one input, its prompts are the other one, or its towers take one each.
        and not ((head in _OF_SEVERAL or (has_towers and head != RAW)) and name in _MAIN)
    }
    if head == SPEECH and main not in CLIPS:
        wanted |= {"clips among the tokens of a prompt"}
    if main not in _MAIN:
        wanted |= {main}
    if wanted:
        raise JobError(
            f"model.path: {CONFIG}: {cls.__name__} needs more of a row than one text, image or "
            f"clip: {', '.join(sorted(wanted))}; {_WAY_OUT}"
        )


class Run(NamedTuple):
    """The result of running a class once."""

    is_done: bool
    """Whether it ran: some classes need sizes that their config lacks."""
    width: int | None
    """Length of its vectors of texts, if it gives such."""


def require_run(
    module: Any, head: str, *, is_whole: bool, load: Callable[[], torch.nn.Module] | None
) -> Run:
    """Refuse a class that cannot run on its main input, or that changes when it runs.

    Args:
        module: A module of transformers, on the device `meta`.
        is_whole: Whether it has all of its tensors; otherwise it is not refused if it cannot run.
        load: Loads it with its numbers, which some classes cannot run without; None: too many.

    Raises:
        JobError: It gives other outputs than are read, or computes another way from then on.
    """
    if hasattr(module, "get_text_features") or hasattr(module, "get_audio_features"):
        return Run(False, None)  # each tower runs by itself
    if head in _OF_SEVERAL and is_whole:
        return Run(False, None)  # its texts or boxes are compared with the library's
    cls, main = type(module), module.main_input_name
    ways, outputs = _ways(module), run_once(module)
    # Torch raises a RuntimeError for operations that need numbers.
    if isinstance(outputs, RuntimeError) and load is not None and main == IDS:
        module = load()
        ways, outputs = _ways(module), run_once(module)
    if isinstance(outputs, Exception):
        is_known = not isinstance(outputs, RuntimeError) and "size" not in str(outputs)
        if is_known and is_whole and main not in CLIPS and head not in WRITERS:
            what = f"cannot run {cls.__name__} on {main} alone"
            raise refused(outputs, what) from outputs
        return Run(False, None)
    if head not in WRITERS and head != RAW:
        _require_outputs(cls, head, outputs)
    now = _ways(module)
    for key in ways.keys() & now.keys():
        if ways[key] != now[key]:
            raise JobError(
                f"model.path: config.json: {cls.__name__} turns {key} from {ways[key]} into "
                f"{now[key]} once it sees a short text, and then treats long ones so: put "
                f"{now[key]} into config.json, or take another model"
            )
    vectors = getattr(outputs, "last_hidden_state", None)
    return Run(True, None if vectors is None or main != IDS else vectors.shape[-1])


def run_once(module: Any, inputs: Mapping[str, torch.Tensor] | None = None) -> Any:
    """Run a module, and return its outputs or its error.

    Args:
        inputs: On the module's device; None: its main input of two rows.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    is_empty = next(module.parameters()).is_meta
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet())
        stack.enter_context(torch.no_grad())
        if is_empty:
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            stack.enter_context(torch.device("meta"))
        try:
            return module.eval()(**(_inputs(module) if inputs is None else inputs))
        except Exception as error:  # noqa: BLE001  # of the library
            return error


def _inputs(module: Any) -> dict[str, torch.Tensor]:
    """Return the main input of two rows, on the device of the context."""
    import torch

    main, config = module.main_input_name, module.config
    if main == IDS:
        ids, config = torch.zeros(2, _TOKENS, dtype=torch.int64), config.get_text_config()
        end = np.ravel(getattr(config, "eos_token_id", None) or 0)[0]
        if 0 < end < getattr(config, "vocab_size", 0):
            ids[:, -1] = int(end)  # BART and T5 classify a text by the vector of its end
        return {main: ids, MASK: torch.ones_like(ids)}
    if main == "pixel_values":
        config = getattr(config, "vision_config", None) or getattr(config, "encoder", config)
        side = getattr(config, "image_size", None) or _USUAL_PX
        sides = side if isinstance(side, list | tuple) else (side, side)
        return {main: torch.zeros(2, getattr(config, "num_channels", None) or 3, *sides)}
    return {main: torch.zeros(2, _SAMPLES)}


def _require_outputs(cls: Any, head: str, outputs: Any) -> None:
    given = [*outputs] if hasattr(outputs, "keys") else [type(outputs).__name__]
    expected = _GIVES.get(head, ("logits",))
    has = [getattr(outputs, name, None) is not None for name in expected]
    if not (all if head == "detection" else any)(has):
        raise JobError(
            f"model.path: config.json: {cls.__name__} gives {', '.join(given)}, expected "
            f"{' and '.join(expected[:2]) if head == 'detection' else expected[0]}; "
            f"task: raw writes outputs as they are, or {FACTORY_ADVICE}"
        )


def _ways(module: torch.nn.Module) -> dict[str, str]:
    """Return the attributes that name a way of computing: name -> value."""
    return {
        f"{name}.{key}".lstrip("."): value
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if isinstance(value, str)
    }


def labels_of(config: Any, values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the class names in the order of the outputs, as the config has them.

    Raises:
        JobError: id2label does not name each output once.
    """
    named = read_value(values, "id2label", CONFIG, dict[str, str])
    if named is None:
        return tuple(f"LABEL_{index}" for index in range(config.num_labels))
    wanted = [str(index) for index in range(len(named))]
    if sorted(named) != sorted(wanted):
        raise JobError(
            f"model.path: {CONFIG}: id2label must name the outputs 0 to {len(named) - 1}, it has "
            f"{preview(sorted(named))}"
        )
    return tuple(named[index] for index in wanted)


def tasks_of(
    head: str, labels: tuple[str, ...], values: Mapping[str, Any], *, scores_pairs: bool
) -> tuple[str, ...]:
    """Return the tasks that the outputs of a head serve, the default first.

    Args:
        head: `sequence`, `token`, `image` or `audio`.
        scores_pairs: The directory says that it is a cross-encoder's.

    Raises:
        JobError: problem_type is unknown.
    """
    if head == "token":
        return ("tokens",)
    problem = read_value(values, "problem_type", CONFIG, str)
    if problem is not None and problem not in _PROBLEMS:
        raise JobError(
            f"model.path: {CONFIG}: problem_type is {preview(problem)}, expected one of "
            f"{', '.join(_PROBLEMS)}"
        )
    if len(labels) == 1 and problem != "multi_label_classification":
        if head in ("image", "audio"):
            return ("regress",)
        return ("score", "regress") if scores_pairs else ("regress", "score")
    if problem == "regression":
        return ("regress",)
    tasks = _PROBLEMS[problem or "single_label_classification"]
    entails = entailment_id(labels) is not None
    return (*tasks, "zero_shot") if head == "sequence" and entails else tasks


def entailment_id(labels: tuple[str, ...]) -> int | None:
    """Return which output of an NLI model says that a text entails another; None: none does."""
    starts = (id_ for id_, name in enumerate(labels) if name.lower().startswith(_ENTAILS))
    return next(starts, None)


def score_activation(values: Mapping[str, Any], num_labels: int) -> tuple[str, bool]:
    """Return `identity` or `sigmoid` for the score of a pair, and whether the config names it.

    Raises:
        JobError: It names another function.
    """
    ours = values.get("sentence_transformers")
    named = ours.get("activation_fn") if isinstance(ours, dict) else values.get(_OLD_ACTIVATION)
    activation = activation_of(named, CONFIG)
    return activation or ("sigmoid" if num_labels == 1 else "identity"), bool(activation)


def activation_of(named: Any, where: str) -> str:
    """Return `identity` or `sigmoid` for a class of torch; '' if none is named.

    Raises:
        JobError: It is another one; nothing is imported by name.
    """
    if not isinstance(named, str):
        return ""
    name = named.rpartition(".")[2].lower()
    if not named.startswith("torch.nn.") or name not in ("identity", "sigmoid"):
        raise JobError(
            f"model.path: {where}: activation_fn is {preview(named)}, expected Sigmoid or Identity "
            "of torch.nn"
        )
    return name
