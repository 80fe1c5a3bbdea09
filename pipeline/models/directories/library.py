"""Classes of the installed transformers: which one a config names, built with our tensors.

The directory gives numbers and names; code comes from the installed library alone. The library
renames, ties and ignores tensors as it declares for each family; its own report of what is missing,
unexpected or of another shape is refused here instead of being filled with random numbers.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.models.directories.json_files import shown
from pipeline.models.directories.tensors import (
    TensorHeader,
    repeating_tensors,
    require_size,
    some,
)

if TYPE_CHECKING:
    import torch

_LAYERS = re.compile(r"(layers?|depths?|blocks|stages)$")
"""Keys that count layers, each of which is a Python object."""
_MOST = {"num_labels": 1_000_000}
_MAX_NUMBER = 1 << 40
_MAX_LAYERS = 1024
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
_SILENT = 50
"""Level of the library's log: critical errors alone."""
_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
_ENCODERS = ("ModelWithProjection", "VisionModel", "TextModel", "EncoderModel")
"""Endings of classes that are encoders besides the one of their model type."""
_WITHOUT_HEAD = ("ForMaskedLM", "ForPreTraining")
"""Endings of classes whose encoder gives embeddings, and whose head is for training."""


def require(extra: str) -> None:
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
    require("transformers")
    kind = values.get("model_type")
    check_numbers(values, max(num_tensors, _MAX_LAYERS))
    if values.get("quantization_config"):
        raise JobError(
            "model.path: config.json has quantization_config: quantised weights are not read; take "
            "the float weights of this model"
        )
    from transformers import CONFIG_MAPPING

    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        made = values.get("transformers_version")
        of = f", the directory was made with {shown(made)}" if made else ""
        raise JobError(
            f"model.path: config.json: model_type is {shown(kind)}, which the installed "
            f"transformers {version('transformers')} does not know{of}; install one that does"
        )
    plain = {key: value for key, value in values.items() if key not in _NOT_TAKEN}
    try:
        return CONFIG_MAPPING[kind].from_dict({**plain, "use_cache": False})
    except Exception as error:  # the library checks values in many ways
        raise _refused(error, f"makes no configuration of {kind}") from error


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
            check_numbers(sum(each for each in values if type(each) is int), most_layers, key)
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

    found = getattr(transformers, name, None) if name.isidentifier() else None
    is_model = inspect.isclass(found) and issubclass(found, transformers.PreTrainedModel)
    if found is None or not is_model or found.config_class is not type(config):
        raise JobError(
            f"model.path: config.json: architectures names {clean_message(name, 80)!r}, which is "
            f"no model of type {config.model_type} in transformers {version('transformers')}"
        )
    return found


def head_of(cls: Any, config: Any) -> str:
    """Return `sequence`, `token`, `image` for classes with such a head, otherwise `none`."""
    import transformers

    for head, mapping in (
        ("sequence", transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING),
        ("token", transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING),
        ("image", transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING),
    ):
        if _is_in(cls, mapping, config):
            return head
    return "none"


def encoder_of(cls: Any, config: Any, *, is_declared: bool) -> Any:
    """Return the class of the encoder of a class without a head that is a task.

    Args:
        cls: The class that `architectures` names.
        config: Its configuration.
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
        "here; expected an encoder, or a sequence, token or image classification"
    )


def base_of(config: Any) -> Any:
    """Return the library's encoder of a configuration; None if there is none."""
    import transformers

    found = transformers.MODEL_MAPPING.get(type(config), None)
    return found[0] if isinstance(found, tuple) else found


def _is_in(cls: Any, mapping: Any, config: Any) -> bool:
    found = mapping.get(type(config), ())
    return cls in (found if isinstance(found, tuple) else (found,))


def check_fit(
    cls: Any, named: Any, config: Any, headers: Mapping[str, TensorHeader]
) -> torch.nn.Module:
    """Refuse a config and files that do not fit, without the memory of either.

    Returns:
        The module, with numbers that mean nothing.

    Raises:
        JobError: Tensors are missing, superfluous or of other shapes.
    """
    import torch

    with _quiet(), torch.device("meta"):
        try:
            module = cls(config, **_without_pooler(cls, config))
        except Exception as error:
            raise _refused(error, f"builds no {cls.__name__} of this config.json") from error
    require_size(module, headers, "config.json")
    return load(cls, named, config, repeating_tensors(headers))


def load(cls: Any, named: Any, config: Any, tensors: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """Build a class of the library with these tensors, in float32 on the CPU, in eval mode.

    Args:
        cls: What to build.
        named: The class that `architectures` names; its head may be among the tensors.
        config: The configuration.
        tensors: By name, as in the files; they may become the module's own.

    Raises:
        JobError: Tensors are missing, superfluous or of other shapes.
    """
    import torch

    options = {
        "config": config,
        "state_dict": dict(tensors),
        "local_files_only": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
        "dtype": torch.float32,
        "attn_implementation": _attention(cls, config),
        **_without_pooler(cls, config),
    }
    with _quiet():
        try:
            module, found = cls.from_pretrained(None, **options)
        except Exception as error:
            raise _refused(error, f"loads no {cls.__name__} from these tensors") from error
    unexpected = set(found["unexpected_keys"])
    if unexpected and named is not cls:
        unexpected -= _names(named, config)
    if unexpected:
        unexpected -= _names_of_pooler(cls, config)
    _require_fit(cls.__name__, found, unexpected)
    module.eval()
    return module  # type: ignore[no-any-return]


def _require_fit(name: str, found: Mapping[str, Any], unexpected: set[str]) -> None:
    missing = sorted(found["missing_keys"])
    other = sorted(
        f"{key} is {tuple(held)}, not {tuple(wanted)}"
        for key, held, wanted in found["mismatched_keys"]
    )
    problems = [
        f"{len(names)} {what} ({some(names)})"
        for names, what in (
            (missing, "missing"),
            (sorted(unexpected), "unexpected"),
            (other, "of another shape"),
        )
        if names
    ]
    if problems:
        raise JobError(
            f"model.path: the safetensors do not fit {name} of config.json: tensors "
            + "; ".join(problems)
        )


def _attention(cls: Any, config: Any) -> str:
    """Return which of the library's attentions runs: SDPA if the class has it.

    In layers that see a window, padding behind it sees nothing at all; OpenVINO's SDPA makes NaN of
    that, which spreads to the texts. The library's eager attention does not.
    """
    has_windows = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    return "sdpa" if getattr(cls, "_supports_sdpa", False) and not has_windows else "eager"


def _without_pooler(cls: Any, config: Any) -> dict[str, bool]:
    """Return the option that leaves out a layer whose output is not used, if there is one."""
    if "add_pooling_layer" not in inspect.signature(cls.__init__).parameters:
        return {}
    is_used = cls.main_input_name == "pixel_values" and not has_class_token(cls, config)
    return {} if is_used else {"add_pooling_layer": False}


def has_class_token(cls: Any, config: Any) -> bool:
    """Tell whether the first vector of a model of images stands for the whole image."""
    return any(name.endswith(_CLASS_TOKENS) for name in _names(cls, config))


def _names_of_pooler(cls: Any, config: Any) -> set[str]:
    """Return the names of a layer over the encoder that a class does not use.

    Classifiers that were trained from an encoder often keep it in their files.
    """
    base = base_of(config)
    if base is None:
        return set()
    names = [name for name in _names(base, config) if name.startswith("pooler.")]
    return {*names, *(f"{cls.base_model_prefix}.{name}" for name in names)}


def _names(cls: Any, config: Any) -> set[str]:
    """Return the names of all tensors of a class; no memory is used."""
    import torch

    with _quiet(), torch.device("meta"):
        return set(cls(config).state_dict())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's own report of loading, and its progress bars, from the terminal."""
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


def _refused(error: Exception, what: str) -> JobError:
    told = clean_message(f"{type(error).__name__}: {error}", 200)
    return JobError(f"model.path: transformers {version('transformers')} {what}: {told}")
