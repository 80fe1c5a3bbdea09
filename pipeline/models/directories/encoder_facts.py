"""Facts of directories whose model is a class of transformers, alone or in sentence-transformers.

Settings for the builder: `at`, where config and weights lie ('' or a folder ending in `/`);
`named`, the class that `architectures` names, and `built`, the class that is built; `head`; for
embeddings `pooling`, `include_prompt`, `prompt_tokens` and `layers`; for scores `activation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError
from pipeline.models.directories import heads
from pipeline.models.directories import sentence_transformers as st
from pipeline.models.directories.described import DirectoryFacts, InputKind, TextFacts
from pipeline.models.directories.json_files import flag, kind_of, read_object, shown, whole
from pipeline.models.directories.library import (
    check_fit,
    config_of,
    encoder_of,
    head_of,
    named_class,
)
from pipeline.models.directories.tensors import read_headers
from pipeline.models.directories.text_facts import TOKENIZER, prompt_tokens, text_facts

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"


@dataclass(frozen=True)
class Chosen:
    """The class that a config names, checked against the weights."""

    values: Mapping[str, Any]
    """The content of config.json."""
    config: Any
    named: Any
    """The class that `architectures` names."""
    built: Any
    """The class that is built."""
    head: str
    module: torch.nn.Module
    """An instance of `built`; its numbers mean nothing."""


def choose(folder: Path, at: str = "", *, is_encoder: bool = False) -> Chosen:
    """Choose the class that a config names, and check that the weights fit.

    Args:
        folder: The directory.
        at: Where config and weights lie: '' or a folder ending in `/`.
        is_encoder: Another file says that embeddings are wanted, whatever the head.

    Raises:
        JobError: The library has no such class, or the weights do not fit.
    """
    values = read_object(folder, at + CONFIG)
    headers = read_headers(folder / at)
    config = config_of(values, len(headers))
    named = named_class(_architecture(values), config)
    head = "none" if is_encoder else head_of(named, config)
    built = named if head != "none" else encoder_of(named, config, is_declared=is_encoder)
    module = check_fit(built, named, config, headers)
    return Chosen(values, config, named, built, head, module)


def _architecture(values: Mapping[str, Any]) -> str:
    found = values.get("architectures")
    if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], str):
        raise JobError(
            f"model.path: {CONFIG}: architectures is {shown(found)}, expected a list of one class"
        )
    return found[0]


def transformers_facts(
    folder: Path, values: Mapping[str, Any], wanted: InputKind | None = None
) -> DirectoryFacts:
    """Read the facts of a snapshot with a config of transformers.

    Raises:
        JobError: The directory is refused.
    """
    chosen = choose(folder)
    if chosen.built.main_input_name == "input_ids":
        return _text_facts(folder, chosen)
    raise JobError(f"model.path: {CONFIG}: {chosen.named.__name__} takes no text")


def sentence_transformers_facts(folder: Path) -> DirectoryFacts:
    """Read the facts of a directory with a `modules.json`.

    Raises:
        JobError: The directory is refused.
    """
    modules = st.read_modules(folder)
    kinds = [kind for kind, _ in modules]
    if kinds[0] != "Transformer" or kinds.count("Transformer") != 1:
        raise JobError(
            f"model.path: {st.MODULES}: the first module, and no other, must be Transformer"
        )
    at = modules[0][1]
    if st.is_cross_encoder(folder, kinds):
        return _text_facts(folder, choose(folder, at), at=at, scores_pairs=True)
    if kinds[1:2] != ["Pooling"] or kinds.count("Pooling") != 1:
        raise JobError(f"model.path: {st.MODULES}: Pooling must follow Transformer, once")
    return _encoder_facts(folder, modules, choose(folder, at, is_encoder=True))


def _encoder_facts(folder: Path, modules: list[tuple[str, str]], chosen: Chosen) -> DirectoryFacts:
    at = modules[0][1]
    prefix, prompts = st.read_prompt(folder)
    pooling = st.read_pooling(folder, modules[1][1])
    text = _text(folder, chosen, at, prefix)
    width = _width(chosen.config)
    dim = width * len(pooling["pooling"])
    layers: list[dict[str, Any]] = []
    for kind, place in modules[2:]:
        if kind == "Normalize":
            layers.append(st.read_normalize(folder, place))
            continue
        layers.append(st.read_dense(folder, place))
        if layers[-1]["in_features"] != dim:
            raise JobError(
                f"model.path: {place}{CONFIG}: in_features is {layers[-1]['in_features']}, and "
                f"what comes before gives {dim}"
            )
        dim = layers[-1]["out_features"]
    skips = not pooling["include_prompt"] and prefix
    num_tokens = prompt_tokens(folder / text.tokenizer, prefix) if skips else 0
    steps = [" + ".join(pooling["pooling"]), *(each["layer"] for each in layers)]
    return DirectoryFacts(
        kind="sentence_transformers",
        architecture=chosen.built.__name__,
        input="text",
        tasks=("embed", "zero_shot"),
        labels=None,
        transform=None,
        text=text,
        embedding_dim=dim,
        settings={
            **_settings(chosen, at),
            **pooling,
            "prompt_tokens": num_tokens,
            "layers": layers,
            "prompts": prompts,
        },
        said=(
            f"{at}{CONFIG}: {chosen.named.__name__}, encoder of texts",
            f"{st.MODULES}: pooling {', '.join(steps)}; {dim} numbers per text",
            *_said_of_text(text),
            *([f"{st.PROMPTS}: before each text {shown(prefix)}"] if prefix else []),
        ),
    )


def _text_facts(
    folder: Path, chosen: Chosen, *, at: str = "", scores_pairs: bool = False
) -> DirectoryFacts:
    text = _text(folder, chosen, at, st.read_prompt(folder)[0])
    settings = _settings(chosen, at)
    said: list[str] = [f"{at}{CONFIG}: {chosen.named.__name__}"]
    tasks: tuple[str, ...] = ("embed", "zero_shot")
    labels: tuple[str, ...] | None = None
    dim: int | None = None
    if chosen.head == "none":
        dim = _width(chosen.config)
        plain = {"pooling": ["mean"], "include_prompt": True, "prompt_tokens": 0, "layers": []}
        settings.update(plain)
        said.append(f"no {st.MODULES}: pooling mean, without normalisation; {dim} numbers per text")
    else:
        labels = heads.labels_of(chosen.config, chosen.values)
        activation, is_named = heads.score_activation(folder, chosen.values, len(labels))
        settings["activation"] = activation
        tasks = heads.tasks_of(
            chosen.head, labels, chosen.values, scores_pairs=scores_pairs or is_named
        )
        said.append(f"{at}{CONFIG}: {len(labels)} outputs, {', '.join(tasks)}")
    return DirectoryFacts(
        kind="transformers",
        architecture=chosen.built.__name__,
        input="text",
        tasks=tasks,
        labels=labels,
        transform=None,
        text=text,
        embedding_dim=dim,
        settings=settings,
        said=(*said, *_said_of_text(text)),
    )


def _text(folder: Path, chosen: Chosen, at: str, prefix: str) -> TextFacts:
    lengths = read_object(folder, at + st.LENGTHS, optional=True)
    return text_facts(
        folder,
        chosen.module,
        at=at if (folder / (at + TOKENIZER)).is_file() else "",
        max_seq_length=whole(lengths, "max_seq_length", at + st.LENGTHS, 1),
        prefix=prefix,
        lowercase=flag(lengths, "do_lower_case", at + st.LENGTHS, False),
    )


def _settings(chosen: Chosen, at: str) -> dict[str, Any]:
    return {
        "at": at,
        "named": chosen.named.__name__,
        "built": chosen.built.__name__,
        "head": chosen.head,
    }


def _said_of_text(text: TextFacts) -> tuple[str, ...]:
    return (f"{text.tokenizer}: texts of at most {text.max_tokens} tokens",)


def _width(config: Any) -> int:
    found = getattr(config, "hidden_size", None)
    if type(found) is not int:
        raise JobError(f"model.path: {CONFIG}: hidden_size is {kind_of(found)}, expected a number")
    return found
