"""Classes of the installed transformers: which one a config names.

The directory gives numbers and names; code comes from the installed library alone.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.models.directories.files import CONFIG, preview
from pipeline.models.directories.view import cleaned
from pipeline.models.generate.spec import CAPTION, CAUSAL, SEQ2SEQ, SPEECH

_LAYERS = re.compile(r"(layers?|depths?|blocks|stages)$")
"""Keys that count layers, each of which is a Python object."""
_MOST = {"num_labels": 1_000_000}
_MAX_NUMBER = 1 << 40
MAX_LAYERS = 256
_SILENT = 50
"""Level of the library's log: critical errors alone."""
_HEAD = re.compile(r"For[A-Z]")
"""What the library calls a class with a head, or has in its name."""
_PLAIN = {
    **dict.fromkeys(("output_attentions", "output_hidden_states", "use_cache"), False),
    "return_dict": True,
}
"""How the library runs a model here, whatever a config says."""

FACTORY_ADVICE = "model.factory runs any module, with task raw, outputs and a postprocess"
_NO_CODE = "code of a directory is never run"
_HEADS = {
    CAPTION: "IMAGE_TEXT_TO_TEXT",
    SPEECH: "SPEECH_SEQ_2_SEQ",
    "sequence": "SEQUENCE_CLASSIFICATION",
    "token": "TOKEN_CLASSIFICATION",
    "image": "IMAGE_CLASSIFICATION",
    "audio": "AUDIO_CLASSIFICATION",
    "detection": "OBJECT_DETECTION",
    CAUSAL: "CAUSAL_LM",
    SEQ2SEQ: "SEQ_TO_SEQ_CAUSAL_LM",
}
"""Heads as `LibraryClass.head` names them -> what the library's list of their classes is for."""
_TRAINED = ("MASKED_LM", "PRETRAINING", "MASKED_IMAGE_MODELING")
"""Heads that are for training alone."""


def require_library(extra: str) -> None:
    """Refuse if the library of an extra is not installed.

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
    """Let the library make the configuration of a `config.json`.

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
    try:
        with tempfile.TemporaryDirectory() as folder, quiet():
            (Path(folder) / CONFIG).write_text(json.dumps(values))
            config = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
            for key in _PLAIN.keys() & vars(part or object).keys():
                setattr(part, key, _PLAIN[key])
    except Exception as error:  # the library checks values in many ways
        raise refused(error, f"makes no configuration of {model_type} of config.json") from error
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

    Args:
        cls: The class that `architectures` names.
        config: Its configuration.

    Raises:
        JobError: The class is for something that is no task here.
    """
    base = base_of(config)
    if cls is base or not _HEAD.search(cls.__name__):
        return cls
    if base is not None and any(cls in _classes(name, config) for name in _TRAINED):
        return base
    raise JobError(
        f"model.path: config.json: architectures names {cls.__name__}, whose outputs are no task "
        f"here; expected an encoder, a language model, or a classification; {FACTORY_ADVICE}"
    )


def base_of(config: Any) -> Any:
    """Return the library's encoder of a configuration; None if there is none."""
    return next(iter(_classes("", config)), None)


def _classes(head: str, config: Any) -> tuple[Any, ...]:
    """Return the library's classes of a head, '' for none, for a configuration."""
    import transformers

    mapping = f"MODEL_FOR_{head}_MAPPING" if head else "MODEL_MAPPING"
    classes = getattr(transformers, mapping).get(type(config), ())
    return classes if isinstance(classes, tuple) else (classes,)


def refused(error: Exception, what: str) -> JobError:
    """Return the one line of an error of the library."""
    reason = clean_message(f"{type(error).__name__}: {error}", 200)
    return JobError(f"model.path: transformers {version('transformers')} {what}: {reason}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the library itself reports, and its progress bars, from the terminal."""
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
