"""Facts of directories of texts: a class of transformers, alone or in sentence-transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.core.errors import JobError
from pipeline.models.directories import heads
from pipeline.models.directories.chosen import CONFIG, ModelClass, choose, width_of
from pipeline.models.directories.facts import (
    SEQ2SEQ,
    DenseLayer,
    DirectoryFacts,
    Pooling,
    TextFacts,
)
from pipeline.models.directories.json_files import preview, read_object, read_value
from pipeline.models.directories.text import sentence_transformers as st
from pipeline.models.directories.text.text_facts import TOKENIZER, count_tokens, text_facts
from pipeline.models.directories.text.writing.generation_config import generation_facts

if TYPE_CHECKING:
    import torch


def sentence_transformers_facts(folder: Path) -> DirectoryFacts:
    """Read the facts of a directory with a `modules.json`.

    Raises:
        JobError: The directory is refused.
    """
    modules = st.read_modules(folder)
    types = [module_type for module_type, _ in modules]
    if types[0] != "Transformer" or types.count("Transformer") != 1:
        raise JobError(
            f"model.path: {st.MODULES}: the first module, and no other, must be Transformer"
        )
    at = modules[0][1]
    if st.is_cross_encoder(folder, types):
        return encoder_facts(folder, choose(folder, at), scores_pairs=True)
    chosen = choose(folder, at, is_encoder=True)
    text = text_of(folder, at, chosen.module, st.read_prompt(folder))
    width = width_of(chosen.config, "hidden_size")
    pooling, dim, note = sentence_pooling(folder, modules, text, width)
    return chosen.directory(
        "text",
        ("embed", "zero_shot"),
        format_name="sentence_transformers",
        embedding_dim=dim,
        text=text,
        pooling=pooling,
        notes=(
            f"{at}{CONFIG}: {chosen.named.__name__}, encoder of texts",
            note,
            *text_notes(text),
        ),
    )


def sentence_pooling(
    folder: Path, modules: list[tuple[str, str]], text: TextFacts | None, width: int
) -> tuple[Pooling, int, str]:
    """Read what follows the model in a `modules.json`.

    Args:
        folder: The directory.
        modules: Its modules; see `sentence_transformers.read_modules`.
        text: How its texts become tokens; None: the job says it.
        width: Numbers of a token's vector.

    Returns:
        The pooling with its layers, the numbers per text, and what `pipeline plan` says of them.

    Raises:
        JobError: A module is not read, or does not fit the one before it.
    """
    types = [module_type for module_type, _ in modules]
    if types[1:2] != ["Pooling"] or types.count("Pooling") != 1:
        raise JobError(f"model.path: {st.MODULES}: Pooling must follow Transformer, once")
    st.require_vectors(folder, modules[0][1])
    pooling = st.read_pooling(folder, modules[1][1])
    dim = width * len(pooling.modes)
    layers: list[DenseLayer | Literal["normalize"]] = []
    for module_type, place in modules[2:]:
        if module_type == "Normalize":
            st.check_normalize(folder, place)
            layers.append("normalize")
            continue
        layers.append(dense := st.read_dense(folder, place))
        if dense.in_features != dim:
            raise JobError(
                f"model.path: {place}{CONFIG}: in_features is {dense.in_features}, and "
                f"what comes before gives {dim}"
            )
        dim = dense.out_features
    skips = text is not None and text.prefix and not pooling.include_prompt
    num_tokens = count_tokens(str(folder / text.tokenizer), text.prefix) if text and skips else 0
    layer_names = (layer if layer == "normalize" else "dense" for layer in layers)
    steps = [" + ".join(pooling.modes), *layer_names]
    pooling = replace(pooling, prompt_tokens=num_tokens, layers=tuple(layers))
    return pooling, dim, f"{st.MODULES}: pooling {', '.join(steps)}; {dim} numbers per text"


def encoder_facts(
    folder: Path, chosen: ModelClass, *, scores_pairs: bool = False
) -> DirectoryFacts:
    """Read the facts of a class that takes texts.

    Args:
        folder: The directory.
        chosen: The class.
        scores_pairs: Another file says that it is a cross-encoder.

    Raises:
        JobError: The directory is refused.
    """
    at = chosen.at
    text = text_of(folder, at, chosen.module, st.read_prompt(folder))
    notes: list[str] = [f"{at}{CONFIG}: {chosen.named.__name__}"]
    tasks: tuple[str, ...] = ("embed", "zero_shot")
    labels: tuple[str, ...] | None = None
    dim, pooling, activation = None, None, "identity"
    if chosen.head == "none":
        dim = width_of(chosen.config, "hidden_size")
        pooling = Pooling(("mean",), st.MODES)
        notes.append(
            f"no {st.MODULES}: pooling mean, without normalisation; {dim} numbers per text"
        )
        if chosen.named is not chosen.built:
            name = chosen.named.__name__
            notes.append(
                f"{at}{CONFIG}: the head of {name} is not used: no sparse vectors (SPLADE)"
            )
    else:
        labels = heads.labels_of(chosen.config, chosen.values)
        activation, is_named = heads.score_activation(folder, chosen.values, len(labels))
        tasks = heads.tasks_of(
            chosen.head, labels, chosen.values, scores_pairs=scores_pairs or is_named
        )
        notes.append(f"{at}{CONFIG}: {len(labels)} outputs, {', '.join(tasks)}")
    return chosen.directory(
        "text",
        tasks,
        labels=labels,
        embedding_dim=dim,
        text=text,
        pooling=pooling,
        activation=activation,
        notes=(*notes, *text_notes(text)),
    )


def text_of(folder: Path, at: str, module: torch.nn.Module | None, prefix: str = "") -> TextFacts:
    """Read how a model's texts are tokenised; arguments and errors are those of `text_facts`."""
    lengths = read_object(folder, at + st.LENGTHS, optional=True)
    return text_facts(
        folder,
        module,
        at=at if (folder / (at + TOKENIZER)).is_file() else "",
        max_seq_length=read_value(lengths, "max_seq_length", at + st.LENGTHS, int, ge=1),
        prefix=prefix,
        lowercase=read_value(lengths, "do_lower_case", at + st.LENGTHS, bool, False),
    )


def text_notes(text: TextFacts) -> tuple[str, ...]:
    """Return what `pipeline plan` says of texts."""
    cut = "; longer ones lose their start" if text.cuts_start else ""
    prompt = [f"{st.PROMPTS}: before each text {preview(text.prefix)}"] if text.prefix else []
    return (f"{text.tokenizer}: texts of at most {text.max_tokens} tokens{cut}", *prompt)


def language_facts(folder: Path, chosen: ModelClass) -> DirectoryFacts:
    """Read the facts of a language model; raises as `encoder_facts`."""
    text = replace(text_of(folder, chosen.at, chosen.module), shares_places=chosen.head != SEQ2SEQ)
    written = generation_facts(folder, chosen)
    return chosen.directory(
        "text",
        ("choices", "generate"),
        text=text,
        generation=written,
        notes=(
            f"{chosen.at}{CONFIG}: {chosen.named.__name__}, language model",
            *text_notes(text),
            written.note,
        ),
    )
