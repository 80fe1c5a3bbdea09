"""Probes of texts: token ids and types as the library's own tokenizer makes them, and as we do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.models.directories import probes
from pipeline.preprocessing.texts.prompts import tokens_of
from pipeline.preprocessing.texts.text_settings import IDS, TYPES, Prompt, TextSettings

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class LibraryTokens:
    """The library's own way from a row to token ids."""

    library: str
    """Name and version."""
    tokenizer: Any
    """Of transformers."""
    tokens_of: Callable[[Sequence[str], int], Mapping[str, Sequence[int]]]
    """One text or two, and the most tokens -> what the model is given, by name."""
    max_tokens: int | None = None
    """A limit that counts in the place of the tokenizer's."""
    prefix: str = ""
    prompt: Prompt | None = None


def special_tokens(tokenizer: Tokenizer) -> list[str]:
    """Return the texts of a tokenizer's special tokens, by their ids."""
    added = tokenizer.get_added_tokens_decoder()
    return [added[token].content for token in sorted(added) if added[token].special]


def require_tokens(made: LibraryTokens, settings: TextSettings) -> None:
    """Compare the tokens of eight texts, or of four pairs, with those of the library.

    Args:
        made: The library's way.
        settings: Ours.

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
