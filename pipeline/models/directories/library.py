"""Classes of the installed transformers: find the one that a config names, and load it.

A directory gives numbers and names; code comes from the installed library alone. The library
renames, ties and ignores tensors as it declares for each family; tensors that it reports as
missing, unexpected or of another shape are refused instead of being filled with random numbers.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.models.directories.facts import CTC, PROMPTED
from pipeline.models.directories.files import CONFIG, cleaned, preview
from pipeline.models.directories.tensors import (
    TensorHeader,
    meta_tensors,
    require_numbers,
    require_size,
)
from pipeline.models.generate.spec import CAPTION, CAUSAL, SEQ2SEQ, SPEECH
from pipeline.models.weights.state_dict import listed_problems

if TYPE_CHECKING:
    import torch

_LAYERS = re.compile(r"(layers?|depths?|blocks|stages)$")
"""Keys that count layers, each of which is a Python object."""
_MOST = {"num_labels": 1_000_000}
_MAX_NUMBER = 1 << 40
MAX_LAYERS = 256
_SILENT = 50
"""Level of the library's log: critical errors alone."""
_HEAD = re.compile(r"For[A-Z]")
"""Part of the name of a class with a head."""
_PLAIN = {
    **dict.fromkeys(("output_attentions", "output_hidden_states", "use_cache"), False),
    "return_dict": True,
}
"""Settings of each model, whatever its config says."""

_QUANTISED_PARTS = (
    ("qweight", "qzeros", "scales"),
    ("weight_packed", "weight_scale"),
    ("weight", "weight_scale"),
)
"""Names of tensors that stand for a weight."""
FACTORY_ADVICE = "model.factory runs any module, with task raw, outputs and a postprocess"
TOKENIZER_ADVICE = "take the files of a tokenizer as the model's library saves it"
_NO_CODE = "code of a directory is never run"
_HEADS = {
    CAPTION: "IMAGE_TEXT_TO_TEXT",
    SPEECH: "SPEECH_SEQ_2_SEQ",
    "sequence": "SEQUENCE_CLASSIFICATION",
    "token": "TOKEN_CLASSIFICATION",
    "image": "IMAGE_CLASSIFICATION",
    "audio": "AUDIO_CLASSIFICATION",
    CTC: "CTC",
    "detection": "OBJECT_DETECTION",
    PROMPTED: "ZERO_SHOT_OBJECT_DETECTION",
    CAUSAL: "CAUSAL_LM",
    SEQ2SEQ: "SEQ_TO_SEQ_CAUSAL_LM",
}
"""Heads as `LibraryClass.head` names them -> what the library's list of their classes is for."""
_TRAINED = ("MASKED_LM", "PRETRAINING", "MASKED_IMAGE_MODELING")
"""Heads that are for training alone."""
_POOLER = "pooler"
"""Name of a layer over the vectors of an encoder."""


def require_library(extra: str) -> None:
    """Require that the library of an extra is installed.

    Raises:
        JobError: It is not; names the extra.
    """
    try:
        version(extra)
    except PackageNotFoundError:
        raise JobError(
            f"model.path: package {extra} is missing; this directory needs the extra: "
            f"pip install 'batch-inference-pipeline[{extra}]'"
        ) from None


def config_of(values: Mapping[str, Any]) -> Any:
    """Make the configuration of a `config.json` by the library.

    Raises:
        JobError: It names files elsewhere, the installed library does not know the model type, or
            it refuses a value.
    """
    require_library("transformers")
    values = cleaned(values, CONFIG)
    from transformers import CONFIG_MAPPING, AutoConfig

    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        made = values.get("transformers_version")
        of = f", the directory was made with {preview(made)}" if made else ""
        raise JobError(
            f"model.path: config.json: model_type is {preview(model_type)}, which the installed "
            f"transformers {version('transformers')} does not know{of}; {_NO_CODE}: install a "
            f"release that knows it, or return the model from model.factory"
        )
    what = f"makes no configuration of {model_type} of config.json"
    with library_errors(what), tempfile.TemporaryDirectory() as folder:
        (Path(folder) / CONFIG).write_text(json.dumps(values))
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
            for key in _PLAIN.keys() & vars(part or object).keys():
                setattr(part, key, _PLAIN[key])
    return config


def check_numbers(values: Any, most_layers: int = MAX_LAYERS, key: str = "") -> None:
    """Refuse numbers that make a library build endless Python objects.

    Raises:
        JobError: A number is too large; names it and the limit.
    """
    if isinstance(values, dict):
        for name, value in values.items():
            check_numbers(value, most_layers, name)
    elif isinstance(values, list):
        for value in values:
            check_numbers(value, most_layers, key)
        if _LAYERS.search(key):
            check_numbers(sum(number for number in values if type(number) is int), most_layers, key)
    if type(values) is not int:
        return
    limit = most_layers if _LAYERS.search(key) else _MOST.get(key, _MAX_NUMBER)
    if abs(values) > limit:
        raise JobError(f"model.path: config.json: {key} is {values}, at most {limit} can be")


def named_class(name: str, config: Any) -> Any:
    """Return the library's class of this name.

    Raises:
        JobError: There is none, or it is for another model type.
    """
    import transformers

    cls: Any = getattr(transformers, name, None) if name.isidentifier() else None
    is_model = inspect.isclass(cls) and issubclass(cls, transformers.PreTrainedModel)
    heads = ["", *_HEADS.values()]
    if not is_model or not (
        cls.config_class is type(config) or any(cls in _classes(head, config) for head in heads)
    ):
        raise JobError(
            f"model.path: config.json: architectures names {clean_message(name, 80)!r}, which is "
            f"no model of type {config.model_type} in transformers {version('transformers')}; "
            f"{_NO_CODE}: {FACTORY_ADVICE}"
        )
    return cls


def head_of(cls: Any, config: Any) -> str:
    """Return what a class's head is for, as `LibraryClass.head` names it; otherwise `none`."""
    return next((head for head, name in _HEADS.items() if cls in _classes(name, config)), "none")


def encoder_of(cls: Any, config: Any) -> Any:
    """Return the class of the encoder of a class without a head that is a task.

    None: the class is for something that is no task here.
    """
    base = base_of(config)
    if cls is base or not _HEAD.search(cls.__name__):
        return cls
    if base is not None and any(cls in _classes(name, config) for name in _TRAINED):
        return base
    return None


def is_masked(cls: Any, config: Any) -> bool:
    """Tell whether a class is a masked language model."""
    return cls in _classes(_TRAINED[0], config)


def base_of(config: Any) -> Any:
    """Return the library's encoder of a configuration; None if there is none."""
    return next(iter(_classes("", config)), None)


def _classes(head: str, config: Any) -> tuple[Any, ...]:
    """Return the library's classes of a head, '' for none, for a configuration."""
    import transformers

    mapping = f"MODEL_FOR_{head}_MAPPING" if head else "MODEL_MAPPING"
    classes = getattr(transformers, mapping).get(type(config), ())
    return classes if isinstance(classes, tuple) else (classes,)


def refused(
    error: Exception, what: str, way_out: str = FACTORY_ADVICE, library: str = ""
) -> JobError:
    """Turn an error of a library, by default of transformers, into one line."""
    reason = clean_message(f"{type(error).__name__}: {error}", 200)
    library = library or f"transformers {version('transformers')}"
    return JobError(f"model.path: {library} {what}: {reason}; {way_out}")


@contextlib.contextmanager
def library_errors(what: str, way_out: str = FACTORY_ADVICE, library: str = "") -> Iterator[None]:
    """Turn what a library raises in the body into one line, as libraries raise many errors.

    Args:
        what: Goes on with what it fails at.
        way_out: What the user can do.
        library: Its name and version; '': transformers.

    Raises:
        JobError: It raised something.
    """
    try:
        with quiet():
            yield
    except JobError:
        raise
    except Exception as error:
        raise refused(error, what, way_out, library) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep logs and progress bars of the library from the terminal."""
    from transformers.utils import logging

    level, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(_SILENT)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bar:
            logging.enable_progress_bar()


class Fit(NamedTuple):
    """How the tensors of a directory fit a class."""

    module: torch.nn.Module
    """On the device `meta`: shapes without numbers."""
    missing: tuple[str, ...]
    """Tensors that no file has."""
    unused: tuple[str, ...]
    """Tensors of heads that the class does not have."""


def check_fit(
    cls: Any,
    config: Any,
    headers: Mapping[str, TensorHeader],
    head: str,
    *,
    is_quantised: bool = False,
) -> Fit:
    """Refuse a config and files that do not fit, without the memory of either.

    Raises:
        JobError: Tensors are superfluous, of other shapes or types, or fewer than the class needs;
            of quantised weights only the last is known.
    """
    import torch

    with library_errors(f"builds no {cls.__name__} of this config.json"), torch.device("meta"):
        module = cls(config)
    require_size(module, headers, CONFIG)
    numbers = {name: header for name, header in headers.items() if header.is_number}
    if is_quantised:
        wanted = (name for name, _ in module.named_parameters() if name not in numbers)
        require_no_problems(cls, [name for name in wanted if not _has_parts(name, headers)])
        return Fit(module, (), ())
    _, report = _from_pretrained(cls, config, None, meta_tensors(numbers))
    unused = _require_fit(cls, module, report, head)
    missing = report["missing_keys"]
    if missing:
        require_numbers(headers)
    return Fit(module, tuple(sorted(missing)), tuple(sorted(unused)))


def _has_parts(name: str, headers: Mapping[str, TensorHeader]) -> bool:
    """Tell whether files have a weight as quantised tensors."""
    stem = name.removesuffix("weight")
    return any({stem + part for part in parts} <= headers.keys() for parts in _QUANTISED_PARTS)


def load(cls: Any, config: Any, folder: Path, absent: Collection[str]) -> torch.nn.Module:
    """Load a class of the library from a folder, in float32 on the CPU, in eval mode.

    Args:
        folder: Has the weights that `check_fit` took; nothing else of it is read.
        absent: Tensors that no file has, and no prediction reads.

    Raises:
        JobError: The library loads nothing, or a tensor is missing or of another shape.
    """
    module: torch.nn.Module
    module, report = _from_pretrained(cls, config, folder)
    require_no_problems(cls, report["missing_keys"] - {*absent}, (), report["mismatched_keys"])
    leave_out(module, absent)
    module.eval()
    return module


def _from_pretrained(
    cls: Any,
    config: Any,
    folder: Path | None,
    tensors: Mapping[str, torch.Tensor] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Return the library's module, and its report."""
    import torch
    from transformers import GenerationConfig

    options: dict[str, Any] = {
        **{"config": config, "state_dict": tensors and dict(tensors), "dtype": torch.float32},
        **{"local_files_only": True, "trust_remote_code": False, "use_safetensors": True},
        **{"output_loading_info": True, "ignore_mismatched_sizes": True},
        "attn_implementation": _attention(cls, config),
        "use_kernels": False,  # transformers 5.25 downloads them, which are code, by default
    }
    if cls.can_generate():  # rules of writing are read elsewhere
        options["generation_config"] = GenerationConfig.from_model_config(config)
    with library_errors(f"loads no {cls.__name__} from these tensors"):
        module, report = cls.from_pretrained(folder, **options)
    return module, report


def _require_fit(cls: Any, module: Any, report: Mapping[str, Any], head: str) -> set[str]:
    """Return the tensors of heads that the class lacks; refuse others that do not fit.

    An encoder leaves aside all heads, which lie beside it. A class with a head leaves aside layers
    over its encoder that it has not, which files often keep from the encoder's training.
    """
    base = getattr(module, cls.base_model_prefix, module)
    prefix, parts = f"{cls.base_model_prefix}.", {name for name, _ in base.named_children()}
    unused = {
        name
        for name in report["unexpected_keys"]
        if name.removeprefix(prefix).partition(".")[0] not in parts
        and (head == "none" or name.removeprefix(prefix).startswith(f"{_POOLER}."))
    }
    unexpected = report["unexpected_keys"] - unused
    require_no_problems(cls, (), unexpected, report["mismatched_keys"])
    return unused


def require_no_problems(
    cls: Any,
    missing: Collection[str],
    unexpected: Collection[str] = (),
    mismatched: Collection[Any] = (),
) -> None:
    """Refuse a class that the tensors do not fit.

    Raises:
        JobError: Tensors are missing, superfluous or of another shape; names them.
    """
    other = [f"{key} is {tuple(held)}, not {tuple(wanted)}" for key, held, wanted in mismatched]
    problems = listed_problems(
        (sorted(missing), "missing"),
        (sorted(unexpected), "unexpected"),
        (sorted(other), "of another shape"),
    )
    if problems:
        raise JobError(
            f"model.path: the safetensors do not fit {cls.__name__} of config.json: tensors "
            f"{problems}"
        )


def leave_out(module: torch.nn.Module, names: Collection[str]) -> None:
    """Remove tensors from a module, and with them the whole of a layer over an encoder.

    Args:
        module: It is changed; what reads one of them raises an error from now on.
    """
    for name in names:
        path, _, leaf = name.rpartition(".")
        before, is_pooler, _ = f".{path}".partition(f".{_POOLER}")
        part: Any = module.get_submodule(before[1:] if is_pooler else path)
        if is_pooler:
            part.pooler = None
        elif hasattr(part, leaf):
            delattr(part, leaf)


def _attention(cls: Any, config: Any) -> str | None:
    """Return which of the library's attentions is loaded: SDPA if the class has it.

    None leaves it to the library: a backbone, encoder or decoder within the model may lack what the
    model has.

    In layers that see a window, padding behind it sees nothing at all; OpenVINO's SDPA makes NaN of
    that, which spreads to the texts. The library's eager attention does not; see `use_sdpa`.
    """
    if any(getattr(config, name, None) is not None for name in ("backbone_config", "encoder")):
        return None
    return "sdpa" if getattr(cls, "_supports_sdpa", False) and not _has_windows(config) else "eager"


def _has_windows(config: Any) -> bool:
    return "sliding_attention" in (getattr(config, "layer_types", None) or ())


def use_sdpa(module: torch.nn.Module) -> None:
    """Switch layers with a window to SDPA of torch, where the library can change it.

    Eager attention holds L x L scores per head: 8 texts of 8,192 tokens do not fit a GPU. torch's
    own SDPA makes no NaN. It has no caps of scores, so models with these stay as they are.

    Args:
        module: The module of a model directory; it is changed.
    """
    for part in module.modules():
        config = getattr(part, "config", None)
        is_capped = getattr(config, "attn_logit_softcapping", None) is not None
        if _has_windows(config) and getattr(part, "_supports_sdpa", False) and not is_capped:
            with quiet():
                part.set_attn_implementation("sdpa")  # type: ignore[operator]
