"""Facts of directories of texts: of a class of transformers, alone or in sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import JobError
from pipeline.models.directories.facts import (
    MODES,
    MULTI_VECTOR,
    SPARSE,
    STATIC,
    DirectoryFacts,
    LibraryClass,
    Pooling,
    TextFacts,
)
from pipeline.models.directories.files import (
    CONFIG,
    LENGTHS,
    MODULES,
    PROMPTS,
    preview,
    read_object,
    read_value,
)
from pipeline.models.directories.library import FACTORY_ADVICE
from pipeline.models.directories.model_class import (
    ModelClass,
    choose,
    labels_of,
    score_activation,
    tasks_of,
    width_of,
)
from pipeline.models.directories.text.generation_config import generation_facts
from pipeline.models.directories.text.sentence_transformers import (
    LOGIT_SCORE,
    SPLADE,
    Opened,
    modules_of,
)
from pipeline.models.directories.text.tokens import library_tokens, text_facts
from pipeline.models.generate.cached_model import can_share
from pipeline.models.generate.spec import CAUSAL, SEQ2SEQ

if TYPE_CHECKING:
    import torch

_MAXIMUM = {"pooling_strategy": "max", "activation_function": "relu"}.items()
_TOKENS = ("true_token_id", "false_token_id")
_ALONE = "rows cannot share the states of its layers: they run one by one"


def sentence_transformers_facts(folder: Path) -> DirectoryFacts:
    """Read the facts of a directory with a `modules.json`.

    Raises:
        JobError: The directory is refused.
    """
    names, places = zip(*modules_of(folder), strict=True)
    if SPLADE in names:
        return sparse_facts(folder)
    if LOGIT_SCORE in names:
        return _reranker_facts(folder, names, places)
    opened = Opened(folder)
    text = opened.text(folder)
    if opened.is_cross_encoder:
        return _head_facts(replace(opened.chosen, head="sequence"), text, opened.activation)
    if opened.has_token_vectors:
        return _token_vector_facts(opened, text)
    pooling = opened.pooling()
    if opened.is_static:
        return DirectoryFacts(
            format_name="sentence_transformers",
            architecture=STATIC,
            input="text",
            tasks=("embed", "zero_shot"),
            module=LibraryClass(opened.at, STATIC, STATIC),
            embedding_dim=opened.embedding_dim,
            text=text,
            pooling=pooling,
            notes=(pooling_note(pooling, opened.embedding_dim), *text_notes(text)),
        )
    chosen = opened.chosen
    return chosen.directory(
        "text",
        ("embed", "zero_shot"),
        format_name="sentence_transformers",
        embedding_dim=opened.embedding_dim,
        text=text,
        pooling=pooling,
        notes=(
            f"{opened.at}{CONFIG}: {chosen.named.__name__}, encoder of texts",
            pooling_note(pooling, opened.embedding_dim),
            *text_notes(text),
        ),
    )


def _token_vector_facts(opened: Opened, text: TextFacts) -> DirectoryFacts:
    pooling, dim = opened.token_vectors(), opened.embedding_dim
    chosen = replace(opened.chosen, head=MULTI_VECTOR)
    steps = ", ".join(layer.name for layer in pooling.token_layers)
    skipped = f"; {len(pooling.skipped_ids)} tokens have none" if pooling.skipped_ids else ""
    return chosen.directory(
        "text",
        (MULTI_VECTOR,),
        format_name="sentence_transformers",
        embedding_dim=dim,
        text=text,
        pooling=pooling,
        notes=(
            f"{opened.at}{CONFIG}: {chosen.named.__name__}, encoder of tokens",
            f"{MODULES}: {steps} of tokens; {dim} numbers per token{skipped}",
            *text_notes(text),
        ),
    )


def sparse_facts(folder: Path, chosen: ModelClass | None = None) -> DirectoryFacts:
    """Read the facts of a masked language model whose logits become sparse vectors.

    Args:
        chosen: The class of a directory of transformers; None: it has a `modules.json`.

    Raises:
        JobError: The directory is refused.
    """
    modules = [] if chosen else modules_of(folder)
    at = modules[0][1] if modules else ""
    if modules:
        settings = read_object(folder, modules[1][1] + CONFIG) if len(modules) == 2 else {}
        if [name for name, _ in modules[1:]] != [SPLADE] or not settings.items() >= _MAXIMUM:
            raise JobError(
                f"model.path: {MODULES}: {SPLADE} must be the only module behind Transformer, with "
                f"pooling_strategy max and activation_function relu; {FACTORY_ADVICE}"
            )
    chosen = chosen or choose(folder, at, head=SPARSE)
    text = text_of(folder, at, chosen.module)
    text = _limited(folder, at, text) if modules else text
    return chosen.directory(
        "text",
        (SPARSE,),
        format_name="sentence_transformers" if modules else "transformers",
        text=text,
        notes=(
            f"{at}{CONFIG}: {chosen.named.__name__}, weights of tokens as SPLADE's",
            *text_notes(text),
        ),
    )


def _limited(folder: Path, at: str, text: TextFacts) -> TextFacts:
    """Return the facts of texts within the length that a Transformer of the library has."""
    for name in LENGTHS:
        given = read_value(
            read_object(folder, at + name, optional=True), "max_seq_length", name, int
        )
        text = replace(text, max_tokens=min(text.max_tokens, given or text.max_tokens))
    return text


def _reranker_facts(folder: Path, names: Sequence[str], places: Sequence[str]) -> DirectoryFacts:
    """Read the facts of a causal language model whose score is the logit of one token less another.

    Its softmax over two answers is the sigmoid of that score, so it serves `choices` alone.

    Raises:
        JobError: The directory is refused.
    """
    settings = read_object(folder, places[1] + CONFIG) if names[1:] == (LOGIT_SCORE,) else {}
    chosen = choose(folder, places[0])
    if chosen.head != CAUSAL or None in map(settings.get, _TOKENS):
        raise JobError(
            f"model.path: {MODULES}: {LOGIT_SCORE} must be the only module behind a Transformer "
            f"that continues a text, with {' and '.join(_TOKENS)}; {FACTORY_ADVICE}"
        )
    facts = language_facts(folder, chosen)
    text = _limited(folder, places[0], facts.text) if facts.text else None
    note = f"{MODULES}: {LOGIT_SCORE}: the score of true_token_id, as one of two choices"
    return replace(facts, tasks=("choices",), text=text, notes=(*facts.notes[:-1], note))


def encoder_facts(folder: Path, chosen: ModelClass) -> DirectoryFacts:
    """Read the facts of a class that takes texts.

    Raises:
        JobError: The directory is refused.
    """
    has_pairs = chosen.head == "sequence"
    text = text_of(folder, chosen.at, chosen.module, has_pairs=has_pairs)
    if chosen.head != "none":
        return _head_facts(chosen, text)
    dim = chosen.width or width_of(chosen.config.get_text_config(), "hidden_size")
    notes = [
        f"{CONFIG}: {chosen.named.__name__}",
        f"no {MODULES}: pooling mean, without normalisation; {dim} numbers per text",
    ]
    if chosen.named is not chosen.built:
        name = chosen.named.__name__
        notes.append(f"{CONFIG}: the head of {name} is not used; task sparse uses it (SPLADE)")
    return chosen.directory(
        "text",
        ("embed", "zero_shot"),
        embedding_dim=dim,
        text=text,
        pooling=Pooling(("mean",), MODES),
        notes=(*notes, *text_notes(text)),
    )


def _head_facts(chosen: ModelClass, text: TextFacts, named: str | None = None) -> DirectoryFacts:
    """Return the facts of a class with a head.

    Args:
        named: The activation that a cross-encoder of sentence-transformers has; None: it is none.
    """
    labels = labels_of(chosen.config, chosen.values)
    activation, is_named = score_activation(chosen.values, len(labels))
    scores_pairs = named is not None or is_named
    tasks = tasks_of(chosen.head, labels, chosen.values, scores_pairs=scores_pairs)
    return chosen.directory(
        "text",
        tasks,
        labels=labels,
        text=text,
        activation=named or activation,
        notes=(
            f"{chosen.at}{CONFIG}: {chosen.named.__name__}",
            f"{chosen.at}{CONFIG}: {len(labels)} outputs, {', '.join(tasks)}",
            *text_notes(text),
        ),
    )


def text_of(
    folder: Path, at: str, module: torch.nn.Module | None, *, has_pairs: bool = False
) -> TextFacts:
    """Read how a model's texts are tokenised; arguments and errors are those of `text_facts`."""
    made = library_tokens(folder, at)
    return text_facts(folder, at, module, made, has_pairs=has_pairs)


def text_notes(text: TextFacts) -> tuple[str, ...]:
    """Return the lines of `pipeline plan` on texts."""
    cut = "; longer ones lose their start" if text.cuts_start else ""
    frame = "; the chat template stands around each" if text.prompt and text.prompt.text else ""
    prompt = [f"{PROMPTS}: before each text {preview(text.prefix)}"] if text.prefix else []
    return (f"{text.tokenizer}: texts of at most {text.max_tokens} tokens{cut}{frame}", *prompt)


def pooling_note(pooling: Pooling, dim: int) -> str:
    """Return the line of `pipeline plan` on a pooling that a `modules.json` names."""
    steps = [
        *(f"{layer.name} of tokens" for layer in pooling.token_layers),
        " + ".join(pooling.modes),
        *(layer.name for layer in pooling.layers),
    ]
    return f"{MODULES}: pooling {', '.join(steps)}; {dim} numbers per text"


def language_facts(folder: Path, chosen: ModelClass) -> DirectoryFacts:
    """Read the facts of a language model; raises as `encoder_facts`."""
    text = replace(text_of(folder, chosen.at, chosen.module), shares_places=chosen.head != SEQ2SEQ)
    if text.types_alone:
        raise JobError(
            "model.path: tokenizer_config.json: model_input_names has token_type_ids, which "
            f"{chosen.built.__name__} adds to its tokens, and which tasks of language models do "
            "not give; take it out"
        )
    written = generation_facts(folder, chosen)
    alone = chosen.head == CAUSAL and not can_share(chosen.built, chosen.config)
    return chosen.directory(
        "text",
        ("choices", "generate"),
        text=text,
        generation=written,
        notes=(
            f"{chosen.at}{CONFIG}: {chosen.named.__name__}, language model",
            *text_notes(text),
            *([f"{CONFIG}: {_ALONE}"] if alone else ()),
            written.note,
        ),
    )
