"""Which tokens of a text make a word, as transformers' TokenClassificationPipeline decides it.

Its aggregation by words depends on this, and not on the words of the tokenizer: of a tokenizer that
marks pieces (`##ing`), a token is a piece if it is longer or shorter than its place in the text;
of others, if there is no space before it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

NO_WORD = -1
"""The word of a special token."""


@dataclass(frozen=True)
class WordRule:
    """What of a tokenizer decides which tokens are pieces of the word before."""

    marks_pieces: bool
    """Whether pieces have a prefix, such as `##`."""
    unknown_id: int | None
    """Id of the token for unknown characters, which always begins a word."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """Read the rule from a tokenizer."""
        model = json.loads(tokenizer.to_str())["model"]
        unknown = model.get("unk_id")
        if unknown is None and model.get("unk_token") is not None:
            unknown = tokenizer.token_to_id(model["unk_token"])
        return cls(bool(model.get("continuing_subword_prefix")), unknown)

    def word_ids(self, text: str, encoding: Encoding) -> list[int]:
        """Return the word of each token, counted from 0; `NO_WORD` for special tokens."""
        found, word = list[int](), NO_WORD
        for token, number, (start, end), is_special in zip(
            encoding.tokens,
            encoding.ids,
            encoding.offsets,
            encoding.special_tokens_mask,
            strict=True,
        ):
            if is_special:
                found.append(NO_WORD)
                continue
            if number == self.unknown_id:
                is_piece = False
            elif self.marks_pieces:
                is_piece = len(token) != end - start
            else:
                is_piece = start > 0 and " " not in text[start - 1 : start + 1]
            word += 1 if word == NO_WORD or not is_piece else 0
            found.append(word)
        return found
