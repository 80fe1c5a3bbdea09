"""Read the files of a sentence-transformers directory: modules, pooling, dense layers, prompts.

The library's own classes are not used: the few that encoders of texts are made of are described
here by their facts, of which `text_modules` are built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.models.directories.facts import DenseLayer, Pooling
from pipeline.models.directories.json_files import (
    checked,
    preview,
    read_json,
    read_object,
    read_value,
)

MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
LENGTHS = "sentence_bert_config.json"

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""In the order in which the library puts several of them together."""
_OLD_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_MODULE_TYPES = ("Transformer", "Pooling", "Dense", "Normalize")
_TYPES = {
    **{f"sentence_transformers.models.{name}": name for name in _MODULE_TYPES},
    **{f"sentence_transformers.models.{name}.{name}": name for name in _MODULE_TYPES},
    **{f"sentence_transformers.base.modules.{name.lower()}.{name}": name for name in _MODULE_TYPES},
    "sentence_transformers.sentence_transformer.modules.pooling.Pooling": "Pooling",
}
_USUAL_ACTIVATION = "torch.nn.modules.activation.Tanh"
ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
}


def read_modules(folder: Path) -> list[tuple[str, str]]:
    """Read the list of modules: type and path of each, the path '' or ending in `/`.

    Raises:
        JobError: A class is not one of `_MODULE_TYPES`, or a path leaves the directory.
    """
    return parse_modules(read_json(folder, MODULES))


def parse_modules(content: Any) -> list[tuple[str, str]]:
    """Parse the list of modules; see `read_modules`."""
    modules = checked(content, "modules", MODULES, list[dict[str, Any]], min_length=1)
    return [_module(entry) for entry in modules]


def _module(entry: Mapping[str, Any]) -> tuple[str, str]:
    name = entry.get("type")
    if not isinstance(name, str) or name not in _TYPES:
        raise JobError(
            f"model.path: {MODULES} names the class {preview(name)}, which is not read; expected "
            f"{', '.join(_MODULE_TYPES)} of sentence_transformers"
        )
    path = entry.get("path")
    if not isinstance(path, str) or _leaves(path):
        raise JobError(f"model.path: {MODULES}: path {preview(path)} is no folder of the directory")
    return _TYPES[name], f"{path.rstrip('/')}/" if path.strip("./") else ""


def _leaves(path: str) -> bool:
    return path.startswith("/") or "\\" in path or "\0" in path or ".." in PurePosixPath(path).parts


def require_vectors(folder: Path, at: str) -> None:
    """Refuse a Transformer that gives other vectors than those of the last layer.

    Raises:
        JobError: Newer releases can name another method or output; it does.
    """
    where = f"{at}{LENGTHS}"
    modes = read_object(folder, where, optional=True).get("modality_config") or {}
    text_mode = modes.get("text") if isinstance(modes, dict) else None
    for key, expected in (("method", "forward"), ("method_output_name", "last_hidden_state")):
        actual = text_mode.get(key) if isinstance(text_mode, dict) else expected
        if actual != expected:
            raise JobError(
                f"model.path: {where}: {key} of texts is {preview(actual)}, expected {expected}"
            )


def read_pooling(folder: Path, at: str) -> Pooling:
    """Read the settings of a pooling layer.

    Raises:
        JobError: A mode is unknown.
    """
    where = f"{at}config.json"
    values = read_object(folder, where)
    mode = values.get("pooling_mode")
    if mode is None:
        mode = [new for old, new in _OLD_KEYS.items() if read_value(values, old, where, bool)]
    listed = [mode] if isinstance(mode, str) else mode
    modes: list[str] = checked(listed, "pooling_mode", where, list[str])
    for name in modes:
        if name not in MODES:
            raise JobError(
                f"model.path: {where}: pooling_mode is {preview(name)}, expected {', '.join(MODES)}"
            )
    include_prompt = read_value(values, "include_prompt", where, bool, True)
    return Pooling(tuple(modes) or ("mean",), MODES, include_prompt)


def read_dense(folder: Path, at: str) -> DenseLayer:
    """Read the settings of a dense layer.

    Raises:
        JobError: A value is missing, or the activation is not one of `ACTIVATIONS`.
    """
    where = f"{at}config.json"
    values = read_object(folder, where)
    keys = ("in_features", "out_features")
    width, dim = (checked(values.get(key), key, where, int, ge=1) for key in keys)
    named = read_value(values, "activation_function", where, str, _USUAL_ACTIVATION)
    if read_value(values, "use_residual", where, bool, False):
        raise JobError(f"model.path: {where}: use_residual is not read")
    _require_of_sentence(values, where)
    bias = read_value(values, "bias", where, bool, True)
    activation = activation_of(named, f"{where}: activation_function")
    return DenseLayer(at, width, dim, bias, activation)


def check_normalize(folder: Path, at: str) -> None:
    """Check the settings of a normalisation; old directories have no file for it."""
    where = f"{at}config.json"
    _require_of_sentence(read_object(folder, where, optional=True), where)


def _require_of_sentence(values: Mapping[str, Any], where: str) -> None:
    for key in ("module_input_name", "module_output_name"):
        if values.get(key) not in (None, "sentence_embedding"):
            raise JobError(
                f"model.path: {where}: {key} is {preview(values[key])}, expected sentence_embedding"
            )


def activation_of(name: str, where: str) -> str:
    """Return our name of a class of torch.

    Raises:
        JobError: It is not one of `ACTIVATIONS`; nothing is imported by name.
    """
    if name not in ACTIVATIONS:
        raise JobError(
            f"model.path: {where} is {clean_message(name, 80)}, which is not read; expected one of "
            f"{', '.join(path.rpartition('.')[2] for path in ACTIVATIONS)} of torch.nn"
        )
    return ACTIVATIONS[name]


def read_prompt(folder: Path) -> str:
    """Read the prompt put before each text by default; '' for none.

    Raises:
        JobError: The default prompt is not among them.
    """
    values = read_object(folder, PROMPTS, optional=True)
    prompts: dict[str, str] = read_value(values, "prompts", PROMPTS, dict[str, str], {})
    name = read_value(values, "default_prompt_name", PROMPTS, str)
    if name is not None and name not in prompts:
        raise JobError(
            f"model.path: {PROMPTS}: default_prompt_name is {preview(name)}, prompts has no "
            "such one"
        )
    return "" if name is None else prompts[name]


def is_cross_encoder(folder: Path, types: Sequence[str]) -> bool:
    """Tell whether the directory is of a cross-encoder: one Transformer and nothing else."""
    named = read_object(folder, PROMPTS, optional=True).get("model_type")
    return named == "CrossEncoder" or (named is None and list(types) == ["Transformer"])
