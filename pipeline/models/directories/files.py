"""The files of a model directory: names, users, how JSON files are read, and a safe view of them.

JSON files are read with a limit of size, and each value is checked where it is used. The library of
a directory gets a view of this node's copy: weights and tokenizers are links, and JSON files are
written anew without the keys that name code, other places or kernels, at every depth.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.preprocessing.texts.tokenizer import MAX_BYTES

CONFIG = "config.json"
"""Every directory has one, and each module of sentence-transformers that has settings."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The weights: one file, or what names several."""
ADAPTER = "adapter_config.json"
"""Settings of LoRA weights, which are refused."""
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
VOCABULARY = "vocab.json"
"""Tokens of a model that gives one for each frame of a clip; of others it is not read."""
PROCESSOR, BOTH = "preprocessor_config.json", "processor_config.json"
"""Processors of images and clips; newer releases have one file for all processors."""
GENERATION = "generation_config.json"
"""Rules of models that write."""
MODULES, PROMPTS = "modules.json", "config_sentence_transformers.json"
"""Modules and prompts of sentence-transformers."""
STANFORD, METADATA = "HF_ColBERT", "artifact.metadata"
"""Architecture and settings of a ColBERT as Stanford's library saves it, without MODULES."""
LENGTHS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Settings of a Transformer of sentence-transformers: it takes any of these names."""
OF_MODULE = (CONFIG, SINGLE)
"""Files of a module of sentence-transformers that follows its Transformer."""
OF_MODEL = (
    *(*OF_MODULE, INDEX, ADAPTER, TOKENIZER, TOKENIZER_CONFIG),
    *("special_tokens_map.json", "added_tokens.json", PROCESSOR, BOTH, *LENGTHS),
    # Tokenizers have the first; processors of images and texts once had the second.
    *("chat_template.jinja", "chat_template.json", GENERATION),
)
"""Files of a model of transformers or timm."""
NAMES = (MODULES, PROMPTS, METADATA, *OF_MODEL)
"""Names that are looked up in a directory; `pipeline pull` copies these."""
ONNX_SUFFIX, ONNX_FOLDER = ".onnx", "onnx"
"""A file that is a whole model, and the folder of a directory where exporters put it."""
VOCABULARIES = (
    *("vocab.txt", VOCABULARY, "merges.txt", "spiece.model", "spm.model"),
    *("sentencepiece.bpe.model", "tokenizer.model"),
)
"""Vocabularies that are not read, but from which `tokenizer.json` can be made."""
MAX_CONFIG_BYTES = 1 << 20
MAX_INDEX_BYTES = 16 << 20
_SHOWN_CHARS = 80
_AS_THEY_ARE = (TOKENIZER, VOCABULARY, INDEX)
"""JSON files that are kept as they are: a vocabulary may have any word."""
_DROPPED = frozenset(
    (
        *("_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal"),
        *("_experts_implementation", "_experts_implementation_internal", "_name_or_path"),
        *("attn_implementation", "auto_map", "base_model_name_or_path", "configuration_files"),
        *("custom_generate", "custom_pipelines", "distributed_config", "experts_implementation"),
        *("fast_tokenizer_files", "fusion_config", "kernel_config", "name_or_path"),
        *("trust_remote_code", "use_kernels"),
    )
)
"""Keys for origin, code and kernels of a model, which do not say what it computes."""
QUANTISED = "quantised weights are not supported; take the float weights of this model"
QUANTISATION = "quantization_config"
"""Key of what quantised the weights of a model."""
_BY_ENGINE = (
    {"quant_method": "awq"},
    {"quant_method": "gptq"},
    {"quant_method": "compressed-tensors", "format": "int-quantized"},
    {"quant_method": "compressed-tensors", "format": "pack-quantized"},
)
"""Quantised weights that engine vllm runs."""
_ELSEWHERE = "names other files than those of the directory; take it out"
_REFUSED = {
    **dict.fromkeys(("compression_config", QUANTISATION), QUANTISED),
    **dict.fromkeys(("checkpoint_path", "gguf_file", "transformers_weights"), _ELSEWHERE),
}
"""Keys by which a library would compute with other numbers than those of the files."""
_ARCHITECTURES = ("architecture", "backbone")
_NAME = re.compile(r"[\w.-]+")
"""Names of architectures of timm; timm looks up others in the hub or in a folder."""


def check_size(name: str, size_bytes: int, where: str) -> None:
    """Refuse a file above the limit of its name; weights may have any size.

    Raises:
        JobError: It is too large; names both sizes.
    """
    if name.endswith(".safetensors"):
        return
    limit = MAX_INDEX_BYTES if name.endswith(".index.json") else MAX_CONFIG_BYTES
    limit = MAX_BYTES if name.rpartition("/")[2] == TOKENIZER else limit
    if size_bytes > limit:
        raise JobError(
            f"model.path: {where} has {size_bytes} bytes, at most {limit} are read of such a file"
        )


def parse_json(data: bytes, name: str) -> Any:
    """Parse the content of a JSON file.

    Raises:
        JobError: It is too large, or is no JSON.
    """
    check_size(name, len(data), name)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = clean_message(str(error), _SHOWN_CHARS)
        raise JobError(f"model.path: {name} is no JSON: {reason}") from None


def parse_object(data: bytes, name: str) -> dict[str, Any]:
    """Parse a JSON file that holds one object.

    Raises:
        JobError: It is too large, or holds something else.
    """
    return _object(parse_json(data, name), name)


def _object(content: Any, name: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise JobError(f"model.path: {name} holds {json_type_of(content)}, expected an object")
    return content


def read_json(folder: Path, name: str) -> Any:
    """Read a JSON file of a local directory; raises as `parse_json`, or if there is none."""
    path = folder / name
    if not path.is_file():
        raise JobError(f"model.path: {name} is missing")
    check_size(name, path.stat().st_size, name)
    return parse_json(path.read_bytes(), name)


def read_object(folder: Path, name: str, *, optional: bool = False) -> dict[str, Any]:
    """Read a JSON file that holds one object; {} if it is optional and not there.

    Raises:
        JobError: It is missing, or as `parse_object`.
    """
    if optional and not (folder / name).is_file():
        return {}
    return _object(read_json(folder, name), name)


def processor_settings(folder: Path, at: str, key: str) -> tuple[str, Mapping[str, Any]]:
    """Return the file with the settings of a preprocessor, and these; {} if there are none.

    Args:
        at: Where the model's files lie: '' or a folder ending in `/`.
        key: Key of the settings in a file for several processors, such as `image_processor`.
    """
    both = read_object(folder, at + BOTH, optional=True).get(key)
    if isinstance(both, dict):
        return at + BOTH, both
    return at + PROCESSOR, read_object(folder, at + PROCESSOR, optional=True)


def json_type_of(value: Any) -> str:
    """Return what kind of JSON value this is, for messages."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return names.get(type(value), "a number")


def read_value(
    values: Mapping[str, Any],
    key: str,
    where: str,
    type_: Any,
    default: Any = None,
    **bounds: float,
) -> Any:
    """Return a value of an object; the default if it is null or not there. Raises as `checked`."""
    value = values.get(key)
    return default if value is None else checked(value, key, where, type_, **bounds)


def checked(value: Any, key: str, where: str, type_: Any, **bounds: float) -> Any:
    """Return a value of a file after checking its type and bounds.

    Args:
        key: Its name, for the message.
        type_: A type as pydantic knows it; nothing is converted but whole numbers to float.

    Raises:
        JobError: It is something else; has both.
    """
    from pydantic import ConfigDict, Field, TypeAdapter, ValidationError  # actors need none

    adapter = TypeAdapter(Annotated[type_, Field(**bounds)], config=ConfigDict(strict=True))
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].replace("Input should be", "expected")
        problem = f"{key} is {preview(first['input'])}, {message[0].lower()}{message[1:]}"
        raise JobError(f"model.path: {where}: {problem}") from None


def preview(value: Any) -> str:
    """Return a value of a file as one short printable text."""
    return clean_message(json.dumps(value), _SHOWN_CHARS)


def is_timm(config: Mapping[str, Any]) -> bool:
    """Tell whether a `config.json` is timm's."""
    return "pretrained_cfg" in config or {"architecture", "num_classes"} <= config.keys()


def quantised_by(values: Mapping[str, Any]) -> str:
    """Return what quantised the weights of a `config.json`, if engine vllm runs them; '' if not."""
    by = values.get(QUANTISATION)
    runs = isinstance(by, dict) and any(by.items() >= known.items() for known in _BY_ENGINE)
    return str(by["quant_method"]) if isinstance(by, dict) and runs else ""


def make_view(copy: Path, folder: Path) -> Path:
    """Make a view of a copy, and return its folder.

    Args:
        copy: The files of a directory that were chosen; nothing else is in it.
        folder: An empty folder; the view is made in it.

    Raises:
        JobError: A JSON file is damaged, or names files or models elsewhere.
    """
    view = folder / "view"
    for path in sorted(copy.rglob("*")):
        name = path.relative_to(copy)
        target = view / name
        if path.is_dir():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".json" or path.name in _AS_THEY_ARE:
            os.symlink(path, target)
        else:
            values = read_json(copy, str(name))
            if str(name) == CONFIG and isinstance(values, dict) and quantised_by(values):
                del values[QUANTISATION]
            target.write_text(json.dumps(cleaned(values, str(name))))
    return view


def cleaned(value: Any, name: str) -> Any:
    """Return the content of a JSON file without the keys that name code, other places or kernels.

    Raises:
        JobError: It names files or models elsewhere, or quantised weights, at any depth.
    """
    if isinstance(value, list):
        return [cleaned(item, name) for item in value]
    if not isinstance(value, dict):
        return value
    for key in _REFUSED.keys() & value.keys():
        if value[key]:
            raise JobError(f"model.path: {name} has {key}: {_REFUSED[key]}")
    for key in _ARCHITECTURES:
        architecture = value.get(key)
        if isinstance(architecture, str) and not _NAME.fullmatch(architecture):
            raise JobError(
                f"model.path: {name}: {key} is {preview(architecture)}, expected the name of an "
                "architecture that the installed library has"
            )
    return {key: cleaned(item, name) for key, item in value.items() if key not in _DROPPED}
