"""What is put behind the tokens of a text for an NLI model: the prompts of task `zero_shot`.

Needs no torch: the driver counts the tokens that a text must leave free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pipeline.core.errors import JobError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Hypothesis(NamedTuple):
    """What follows the tokens of a text, special tokens included, to make a pair of it."""

    ids: list[int]
    types: list[int]
    """Token type of each id."""


def hypotheses(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[Hypothesis]:
    """Return what makes a pair of a text and each prompt.

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
