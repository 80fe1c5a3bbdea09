"""How the texts of a directory become tokens: by its library's tokenizer, compared with ours.

The driver imports this file: it needs no torch.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.core.errors import JobError
from pipeline.models.directories import probes
from pipeline.models.directories.facts import DirectoryFacts, TextFacts
from pipeline.models.directories.files import TOKENIZER, TOKENIZER_CONFIG, check_size
from pipeline.models.directories.library import TOKENIZER_ADVICE, library_errors
from pipeline.preprocessing.model_input import Input
from pipeline.preprocessing.texts.prompts import PromptTokenizer, prompt_tokenizer, tokens_of
from pipeline.preprocessing.texts.text_settings import (
    IDS,
    MASK,
    TENSORS,
    TYPES,
    Prompt,
    TextSettings,
)
from pipeline.preprocessing.texts.tokenizer import parse_tokenizer, tokenizer_errors
from pipeline.process.confined import ConfinedError, confined

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

_COUNT = "pipeline.models.directories.text.tokens:count_tokens"
_DEFAULT_TOKENS = 512
"""For a model and a tokenizer that both name no limit."""
_MOST_TOKENS = 1 << 30
"""Limits beyond this mean that there is none."""


def library_tokens(folder: Path, at: str) -> LibraryTokens:
    """Make the tokenizer of a directory by the library.

    Args:
        at: Where its files lie: '' or a folder of the directory, ending in `/`.

    Raises:
        JobError: The library makes none of these files.
    """
    from transformers import AutoTokenizer

    library = f"transformers {version('transformers')}"
    files = f"{at}{TOKENIZER} and {at}{TOKENIZER_CONFIG}"
    with library_errors(f"makes no tokenizer of {files}", TOKENIZER_ADVICE):
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder / at), local_files_only=True, trust_remote_code=False
        )

    def tokens_of(row: Sequence[str], most: int) -> Mapping[str, Sequence[int]]:
        tokens: Mapping[str, Sequence[int]] = tokenizer(*row, truncation=True, max_length=most)
        return tokens

    return LibraryTokens(library, tokenizer, tokens_of)


def load_tokenizer(path: Path, overlay: str = "") -> Tokenizer:
    """Load a `tokenizer.json`.

    Raises:
        JobError: The file is missing, too large, or damaged.
    """
    if not path.is_file():
        raise JobError(f"model.path: {path.name} is missing")
    check_size(TOKENIZER, path.stat().st_size, path.name)
    return parse_tokenizer(f"model.path: {path.name}", path.read_bytes(), overlay)


def output_tokenizer(path: Path, facts: DirectoryFacts, model_input: Input) -> PromptTokenizer:
    """Return the tokenizer of what a language model writes.

    Args:
        model_input: What the model sees of a row.

    Raises:
        JobError: It cannot be read.
    """
    if model_input.text is not None:
        return prompt_tokenizer(model_input.text)
    assert facts.generation is not None, "the directory writes"
    return PromptTokenizer(load_tokenizer(path / facts.generation.tokenizer), Prompt("", ""))


def prompt_tokens(path: Path, text: TextFacts, prompt: str) -> int:
    """Return how many tokens a prompt takes at the start of a text, special tokens included.

    In a confined process, for a pattern of the tokenizer may never end.

    Raises:
        JobError: The tokenizer fails over it, or takes too long.
    """
    file, imports = str(path / text.tokenizer), ("tokenizers",)
    try:
        return int(confined(_COUNT, file, text.overlay, prompt, reads=[path], imports=imports))
    except ConfinedError as error:
        raise JobError(f"model.path: {text.tokenizer} fails over the prompt: {error}") from None


def count_tokens(path: str, overlay: str, prompt: str) -> int:
    """Return how many tokens a prompt takes at the start of a text; see `prompt_tokens`."""
    tokenizer = load_tokenizer(Path(path), overlay)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    encoding = tokenizer.encode(prompt)
    # Without the special token that closes a text.
    return len(encoding.ids) - (encoding.special_tokens_mask[-1:] == [1])


def text_facts(
    folder: Path, at: str, module: torch.nn.Module | None, made: LibraryTokens, *, has_pairs: bool
) -> TextFacts:
    """Read how texts become tensors, and hold our tokens of some texts to the library's.

    Args:
        at: Where the tokenizer lies: '' or a folder of the directory, ending in `/`.
        module: The library's model, whose tensors may mean nothing; None: it is unknown.
        has_pairs: Whether rows may be pairs of texts.

    Raises:
        JobError: A file is missing or damaged, or we make other tokens of it than the library.
    """
    tokenizer, place = made.tokenizer, at + TOKENIZER
    with tokenizer_errors(f"model.path: {place}: fails"):
        overlay = _overlay(load_tokenizer(folder / place), tokenizer, place)
    positions = None if module is None else max_positions(module)
    limits = (made.max_tokens or tokenizer.model_max_length, positions)
    facts = TextFacts(
        tokenizer=place,
        max_tokens=int(min((n for n in limits if n and n < _MOST_TOKENS), default=_DEFAULT_TOKENS)),
        prefix=made.prefix,
        pad_id=_pad_id(tokenizer, module),
        tensor_names=(IDS, MASK),
        cuts_start=tokenizer.truncation_side == "left",
        overlay=overlay,
        prompt=made.prompt,
    )
    with tokenizer_errors(f"model.path: {place}: fails over texts"):
        given = made.tokens_of(("a",), facts.max_tokens)
        facts = _with_types(facts, module, given.get(TYPES))
        for has_pair in (False, True)[: 1 + has_pairs]:
            require_tokens(made, settings_of(folder, facts, has_pair=has_pair))
    return facts


def _with_types(
    facts: TextFacts, module: torch.nn.Module | None, types: Sequence[int] | None
) -> TextFacts:
    """Give token types where the library does, and the model takes them.

    Args:
        types: What the library gives with a single text; None: nothing.
    """
    if types is None:
        return facts
    if module is None:
        return replace(facts, tensor_names=TENSORS)
    count = getattr(text_config(module), "type_vocab_size", None)
    if TYPES not in inspect.signature(module.forward).parameters or (
        count is not None and count < 2
    ):
        return facts  # the model has none
    # Models with several types assume those of a single text by default.
    alone = count is None or any(types)
    return replace(facts, tensor_names=TENSORS, types_alone=alone)


def settings_of(path: Path, text: TextFacts, *, has_pair: bool = False) -> TextSettings:
    """Return the settings of a directory's own texts.

    Args:
        has_pair: Whether rows are pairs of texts.
    """
    file = path / text.tokenizer
    return TextSettings(
        tokenizer_uri=str(file),
        tokenizer_sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        max_tokens=text.max_tokens,
        prefix=text.prefix,
        pad_id=text.pad_id,
        tensor_names=text.tensor_names,
        has_pair=has_pair,
        types_alone=text.types_alone,
        prompt=text.prompt,
        cuts_start=text.cuts_start,
        overlay=text.overlay,
    )


def _overlay(file: Tokenizer, tokenizer: Any, place: str) -> str:
    """Return the sections of a file in whose place the library's tokenizer has others, as JSON."""
    library = getattr(tokenizer, "backend_tokenizer", None)
    if library is None:
        return ""  # the library has a tokenizer of another kind; the tokens are compared
    for one in (file, library):
        one.no_truncation()
        one.no_padding()
    texts = file.to_str(), library.to_str()
    if texts[0] == texts[1]:
        return ""
    # Two readers of JSON differ in the last digit of some scores of pieces.
    ours, theirs = (json.loads(text, parse_float=_rounded) for text in texts)
    changed = {key: value for key, value in theirs.items() if ours.get(key) != value}
    model = ours["model"]
    fields = {k: v for k, v in changed.pop("model", {}).items() if model.get(k, v) != v}
    if not model.keys() == theirs["model"].keys() or {"type", "vocab", "merges"} & fields.keys():
        raise JobError(
            f"model.path: {type(tokenizer).__name__} of transformers has another vocabulary than "
            f"{place}; write one that agrees: AutoTokenizer.from_pretrained(DIR).save_pretrained("
            "NEW)"
        )
    changed |= {"model": fields} if fields else {}
    return json.dumps(changed, sort_keys=True) if changed else ""


def _rounded(number: str) -> float:
    return round(float(number), 12)


def max_positions(module: torch.nn.Module) -> int | None:
    """Return how many tokens the model of texts has positions for; None: it names no limit."""
    import torch

    for name, part in _of_texts(module, type(text_config(module))):
        if name.endswith(("position_embeddings", "position_embedding")) and isinstance(
            part, torch.nn.Embedding
        ):
            # RoBERTa and similar models count from behind the padding index.
            skipped = 0 if part.padding_idx is None else part.padding_idx + 1
            return part.num_embeddings - skipped
    limit = getattr(text_config(module), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def _of_texts(module: Any, config_class: type, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield name and module of the parts of a model but those of other models, as of images."""
    config = getattr(module, "config", None)
    if config is not None and type(_text_part(config)) is not config_class:
        return
    yield name, module
    for child, part in module.named_children():
        yield from _of_texts(part, config_class, child)


def text_config(module: Any) -> Any:
    """Return the configuration of the part of a model that reads texts."""
    return _text_part(module.config)


def _text_part(config: Any) -> Any:
    return getattr(config, "text_config", config)


def _pad_id(tokenizer: Any, module: Any) -> int:
    config = None if module is None else text_config(module)
    for pad_id in (tokenizer.pad_token_id, getattr(config, "pad_token_id", None)):
        if isinstance(pad_id, int) and pad_id >= 0:
            return pad_id
    return 0


@dataclass(frozen=True)
class LibraryTokens:
    """The library's own way from a row to token ids."""

    library: str
    """Name and version."""
    tokenizer: Any
    """A tokenizer of transformers."""
    tokens_of: Callable[[Sequence[str], int], Mapping[str, Sequence[int]]]
    """One text or two, and the most tokens -> what the model is given, by name."""
    max_tokens: int | None = None
    """A limit that replaces the tokenizer's."""
    prefix: str = ""
    prompt: Prompt | None = None


def special_tokens(tokenizer: Tokenizer) -> list[str]:
    """Return the texts of a tokenizer's special tokens, by their ids."""
    added = tokenizer.get_added_tokens_decoder()
    return [added[token].content for token in sorted(added) if added[token].special]


def require_tokens(made: LibraryTokens, settings: TextSettings) -> None:
    """Compare the tokens of eight texts, or of four pairs, with those of the library.

    Raises:
        JobError: They differ; names the probe and both values.
    """
    special, most = made.tokenizer.all_special_tokens, settings.max_tokens
    rows: Sequence[tuple[str, ...]] = [(text,) for text in probes.texts(special, most)]
    if settings.has_pair:
        rows = probes.pairs(special, most)
    ours = tokens_of(settings, *(list(column) for column in zip(*rows, strict=True)))
    first = 0
    for row, count in zip(rows, ours.counts.tolist(), strict=True):
        theirs, span = made.tokens_of(row, most), slice(first, first + count)
        pairs = [(IDS, ours.ids)]
        if settings.has_types and TYPES in settings.tensor_names:
            pairs.append((TYPES, ours.types.astype(np.int32)))
        for name, actual in pairs:
            probes.require_same(" | ".join(row), name, made.library, theirs[name], actual[span])
        first += count


class Hypothesis(NamedTuple):
    """Tokens that follow those of a text to make a pair, special tokens included."""

    ids: list[int]
    types: list[int]
    """Token type of each id."""


def hypotheses(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[Hypothesis]:
    """Return the tokens that make a pair of a text and each prompt.

    Args:
        tokenizer: Its padding and truncation are switched off.

    Raises:
        JobError: The tokenizer does not write pairs as a text and something behind it.
    """
    tokenizer.no_padding()
    tokenizer.no_truncation()
    alone = tokenizer.encode("").ids
    pairs = []
    for prompt in prompts:
        pair = tokenizer.encode("", prompt)
        if pair.ids[: len(alone)] != alone or len(pair.ids) == len(alone):
            raise JobError(
                "model.task = 'zero_shot': the tokenizer's pairs do not begin with the tokens of "
                "the first text, so prompts cannot be put behind it; use a text encoder"
            )
        pairs.append(Hypothesis(pair.ids[len(alone) :], pair.type_ids[len(alone) :]))
    return pairs
