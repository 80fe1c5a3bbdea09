"""Classes of the installed transformers: which one a config names.

The directory gives numbers and names; code comes from the installed library alone.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.models.directories.json_files import preview

_LAYERS = re.compile(r"(layers?|depths?|blocks|stages)$")
"""Keys that count layers, each of which is a Python object."""
_MOST = {"num_labels": 1_000_000}
_MAX_NUMBER = 1 << 40
_MAX_LAYERS = 256
_NOT_TAKEN = (
    "_attn_implementation",
    "attn_implementation",
    "_experts_implementation",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "torchscript",
)
"""Keys that choose how the library runs, not what it computes."""
_TIMM_NAME = re.compile(r"[\w.]+")
_NAMES_TIMM = (
    *("conditional_detr", "dab-detr", "deformable_detr", "detr", "maskformer", "omdet-turbo"),
    "table-transformer",
)
"""Model types whose `backbone` names an architecture of timm; others look it up in the hub."""
_SILENT = 50
"""Level of the library's log: critical errors alone."""
_ENCODERS = ("ModelWithProjection", "VisionModel", "TextModel", "EncoderModel")
"""Endings of classes that are encoders besides the one of their model type."""
_WITHOUT_HEAD = ("ForMaskedLM", "ForPreTraining")
"""Endings of classes whose encoder gives embeddings, and whose head is for training."""

FACTORY_ADVICE = "model.factory runs any module, with task raw, outputs and a postprocess"
_ELSEWHERE = {
    "HF_ColBERT": "gives a vector for each token (late interaction), which is no task here",
    "model2vec": "is a table of static vectors, which transformers has no class for",
}
"""Classes and model types of other libraries -> what they are."""
_NEARBY = {
    "ForCTC": "; speech is written down by Whisper or Moonshine",
    "ForQuestionAnswering": "; answers are written by a language model, task generate",
    "ForZeroShotObjectDetection": "; detectors of fixed labels serve detect",
}
"""Endings of classes -> what of the same use is read."""

_FLOAT = "__float__"
_WRITERS = {
    "BlipForConditionalGeneration": "caption",
    "GitForCausalLM": "caption",
    "Idefics3ForConditionalGeneration": "caption",
    "LlavaForConditionalGeneration": "caption",
    "SmolVLMForConditionalGeneration": "caption",
    "VisionEncoderDecoderModel": "caption",
    "MoonshineForConditionalGeneration": "speech",
    "WhisperForConditionalGeneration": "speech",
}
"""Classes that write and read no text, whose own `generate` was read -> their head."""


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


def config_of(values: Mapping[str, Any], num_tensors: int) -> Any:
    """Make the library's configuration of a `config.json`.

    Raises:
        JobError: The model type is unknown to the installed library, or a number is absurd.
    """
    require_library("transformers")
    model_type = values.get("model_type")
    check_numbers(values, max(num_tensors, _MAX_LAYERS))
    if values.get("quantization_config"):
        raise JobError(
            "model.path: config.json has quantization_config: quantised weights are not read; take "
            "the float weights of this model"
        )
    _require_no_download(values)
    from transformers import CONFIG_MAPPING

    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        if isinstance(model_type, str) and model_type in _ELSEWHERE:
            raise JobError(
                f"model.path: config.json: {model_type} {_ELSEWHERE[model_type]}; {FACTORY_ADVICE}"
            )
        made = values.get("transformers_version")
        of = f", the directory was made with {preview(made)}" if made else ""
        raise JobError(
            f"model.path: config.json: model_type is {preview(model_type)}, which the installed "
            f"transformers {version('transformers')} does not know{of}; install one that does"
        )
    plain = {key: _decoded(value) for key, value in values.items() if key not in _NOT_TAKEN}
    try:
        with quiet():
            config = CONFIG_MAPPING[model_type].from_dict({**plain, "use_cache": False})
    except Exception as error:  # the library checks values in many ways
        raise refused(error, f"makes no configuration of {model_type} of config.json") from error
    for name in config.sub_configs:
        part: Any = getattr(config, name, None)
        if hasattr(part, "use_cache"):
            part.use_cache = False
    return config


def _decoded(value: Any) -> Any:
    """Return a value of a config with the floats that the library writes as objects.

    JSON has no infinity, which is in configs of Mamba 2 and of what is made of it.
    """
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {_FLOAT} and value[_FLOAT] in ("Infinity", "-Infinity", "NaN"):
        return float(value[_FLOAT])
    return {key: _decoded(item) for key, item in value.items()}


def _require_no_download(values: Mapping[str, Any]) -> None:
    """Refuse a backbone that the library would look up in the hub, or in a folder.

    Raises:
        JobError: There is one; names it.
    """
    inner = values.get("backbone_config")
    inner_name = inner.get("backbone") if isinstance(inner, dict) else None
    for name in (values.get("backbone"), inner_name):
        if isinstance(name, str) and not _TIMM_NAME.fullmatch(name):
            raise JobError(
                f"model.path: config.json: backbone is {preview(name)}, which the library would "
                "fetch; expected the name of an architecture of timm"
            )
    if values.get("backbone") and not inner and values.get("model_type") not in _NAMES_TIMM:
        raise JobError(
            f"model.path: config.json: backbone is {preview(values['backbone'])}, which the "
            "library would look up in the hub; give its numbers as backbone_config"
        )


def check_numbers(values: Any, most_layers: int = _MAX_LAYERS, key: str = "") -> None:
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

    cls = getattr(transformers, name, None) if name.isidentifier() else None
    is_model = inspect.isclass(cls) and issubclass(cls, transformers.PreTrainedModel)
    if name in _ELSEWHERE:
        raise JobError(f"model.path: config.json: {name} {_ELSEWHERE[name]}; {FACTORY_ADVICE}")
    if cls is None or not is_model or cls.config_class is not type(config):
        raise JobError(
            f"model.path: config.json: architectures names {clean_message(name, 80)!r}, which is "
            f"no model of type {config.model_type} in transformers {version('transformers')}"
        )
    return cls


def head_of(cls: Any, config: Any) -> str:
    """Return what a class's head is for, as `LibraryClass.head` names it; otherwise `none`."""
    import transformers

    if cls.__name__ in _WRITERS:
        return _WRITERS[cls.__name__]
    for head, mapping in (
        ("sequence", transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING),
        ("token", transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING),
        ("image", transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING),
        ("audio", transformers.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING),
        ("detection", transformers.MODEL_FOR_OBJECT_DETECTION_MAPPING),
        ("causal", transformers.MODEL_FOR_CAUSAL_LM_MAPPING),
        ("seq2seq", transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING),
    ):
        if _is_in(cls, mapping, config):
            return head
    return "none"


def encoder_of(cls: Any, config: Any, *, is_declared: bool) -> Any:
    """Return the class of the encoder of a class without a head that is a task.

    Args:
        cls: The class that `architectures` names.
        is_declared: Another file says that the encoder is meant, whatever the head.

    Raises:
        JobError: The class is for something that is no task here.
    """
    import transformers

    for mapping in (transformers.MODEL_MAPPING, transformers.MODEL_FOR_TEXT_ENCODING_MAPPING):
        if _is_in(cls, mapping, config):
            return cls
    if cls.__name__.endswith(_ENCODERS):
        return cls
    base = base_of(config)
    if base is not None and (is_declared or cls.__name__.endswith(_WITHOUT_HEAD)):
        return base
    raise JobError(
        f"model.path: config.json: architectures names {cls.__name__}, whose outputs are no task "
        f"here; expected an encoder, a language model, or a classification{_nearby(cls)}; "
        f"{FACTORY_ADVICE}"
    )


def _nearby(cls: Any) -> str:
    return next((text for end, text in _NEARBY.items() if cls.__name__.endswith(end)), "")


def base_of(config: Any) -> Any:
    """Return the library's encoder of a configuration; None if there is none."""
    import transformers

    classes = transformers.MODEL_MAPPING.get(type(config), None)
    return classes[0] if isinstance(classes, tuple) else classes


def _is_in(cls: Any, mapping: Any, config: Any) -> bool:
    classes = mapping.get(type(config), ())
    return cls in (classes if isinstance(classes, tuple) else (classes,))


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
