"""Probes of texts: token ids and types as the library's own tokenizer makes them, and as we do."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.directories import probes
from pipeline.models.directories.facts import DirectoryFacts, TextFacts
from pipeline.preprocessing.texts.text_settings import TextSettings
from pipeline.preprocessing.texts.tokenizer import tokenise

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def special_tokens(tokenizer: Tokenizer) -> list[str]:
    """Return the texts of a tokenizer's special tokens, by their ids."""
    added = tokenizer.get_added_tokens_decoder()
    return [added[token].content for token in sorted(added) if added[token].special]


def require_tokens_of(library: str, path: Path, facts: DirectoryFacts, tokenizer: Any) -> int:
    """Compare the tokens of eight texts and four pairs with those of the library's tokenizer.

    Args:
        library: Name and version.
        path: The directory.
        facts: Of it, with texts.
        tokenizer: The library's tokenizer.

    Returns:
        How many texts were compared.

    Raises:
        JobError: They differ.
    """
    text = facts.text
    assert text is not None, "its rows are texts"
    special = special_tokens(tokenizer.backend_tokenizer)
    single = probes.texts(special, text.max_tokens)
    _compare(library, path, text, tokenizer, [(probe,) for probe in single])
    if "token_type_ids" in text.tensor_names:
        _compare(library, path, text, tokenizer, probes.pairs(special, text.max_tokens))
    return len(single)


def _compare(library: str, path: Path, text: TextFacts, tokenizer: Any, rows: Any) -> None:
    file = path / text.tokenizer
    settings = TextSettings(
        tokenizer_uri=str(file),
        tokenizer_sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        max_tokens=text.max_tokens,
        pad_id=text.pad_id,
        tensor_names=text.tensor_names,
        has_pair=len(rows[0]) == 2,
        cuts_start=text.cuts_start,
    )
    ours = tokenise(settings, *(list(column) for column in zip(*rows, strict=True)))
    first = 0
    for row, count in zip(rows, ours.counts.tolist(), strict=True):
        theirs = tokenizer(*row, truncation=True, max_length=text.max_tokens)
        name, span = " | ".join(row), slice(first, first + count)
        probes.require_same(name, "input_ids", library, theirs["input_ids"], ours.ids[span])
        if "token_type_ids" in text.tensor_names and len(row) == 2:
            types = theirs.get("token_type_ids", [0] * count)
            probes.require_same(name, "token_type_ids", library, types, ours.types[span])
        first += count
