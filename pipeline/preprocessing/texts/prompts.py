"""Tokenise prompts: a row's text, or its texts of several columns, between constant parts.

The constant parts may have control tokens, such as those that begin the turn of a role. In the text
of a row they must have no effect, so a text that contains one is tokenised in pieces, none of which
has a whole one.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.core.failures import Reason, RowError
from pipeline.preprocessing.texts.text_settings import Prompt, TextSettings
from pipeline.preprocessing.texts.tokenizer import (
    NO_TYPES,
    NONE,
    Tokens,
    encoded,
    joined,
    local_tokenizer,
    open_tokenizer,
    special_around,
    tokenise,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_VARIED = ("", "a", "Zz", "\n", "1", "\u00e9")
"""Texts whose prompts share exactly the beginning that all prompts share."""


class PromptTokenizer:
    """The tokenizer of a model with the prompt of a job."""

    def __init__(self, tokenizer: Tokenizer, prompt: Prompt) -> None:
        """Take both, and switch off truncation and padding of the tokenizer."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer, self._prompt = tokenizer, prompt
        constants = (prompt.before + prompt.after, *prompt.middles)
        added = tokenizer.get_added_tokens_decoder().items()
        unknown = _unknown(tokenizer)
        self._control = {
            number: token.content
            for number, token in added
            if token.content.strip()
            and token.content != unknown
            and (token.special or any(token.content in part for part in constants))
        }
        self._before, self._after = self._plain(prompt.before), self._plain(prompt.after)
        if prompt.adds_special:
            begins, ends = special_around(tokenizer)
            self._before, self._after = [*begins, *self._before], [*self._after, *ends]
        middles = [number for middle in prompt.middles for number in self._plain(middle)]
        self._num_control = self._count([*self._before, *middles, *self._after])

    @property
    def num_fixed(self) -> int:
        """Number of tokens of a prompt without a text."""
        return len(self._before) + len(self._after)

    def prompts(self, *columns: Sequence[str]) -> list[list[int]]:
        """Return the token ids of the prompt of each row.

        Args:
            columns: The texts of each place, (N,); a single column is in all places.

        Raises:
            RowError: The tokenizer fails over a text, or makes control tokens of it.
        """
        encode = functools.partial(
            self._tokenizer.encode_batch_fast, add_special_tokens=self._prompt.adds_special
        )
        places = columns if columns[1:] else columns * (1 + len(self._prompt.middles))
        texts = [*zip(*places, strict=True)]
        encodings = encoded(encode, [self._prompt.around(*row) for row in texts])
        rows = [encoding.ids for encoding in encodings]
        if self._prompt.is_open:
            return rows
        return [
            ids if self._count(ids) == self._num_control else self._in_pieces(row)
            for row, ids in zip(texts, rows, strict=True)
        ]

    def cut(self, ids: list[int], max_tokens: int) -> list[int]:
        """Return a prompt, with the end of its text removed if it exceeds `max_tokens`."""
        if len(ids) <= max_tokens:
            return ids
        end = len(ids) - len(self._after)
        return [*ids[: max_tokens - len(self._after)], *ids[end:]]

    def shared(self) -> list[int]:
        """Return the token ids that all prompts begin with."""
        # The token next to the text may depend on it, so the last one is omitted.
        columns = zip(*self.prompts(_VARIED), strict=False)
        alike = itertools.takewhile(lambda column: len(set(column)) == 1, columns)
        return [column[0] for column in alike][:-1]

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of answers that continue a prompt.

        An answer begins with a space unless the prompt ends in white space. Its tokens depend on
        the text before it.
        """
        space = "" if self._prompt.after[-1:].isspace() else " "
        context = self._prompt.after or "."
        begin, answers = self._plain(context), []
        for text in texts:
            whole = self._plain(f"{context}{space}{text}")
            follows = whole[: len(begin)] == begin and len(whole) > len(begin)
            answers.append(whole[len(begin) :] if follows else self._plain(space + text))
        return answers

    def targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of answers alone, with the tokenizer's special tokens."""
        return [self._tokenizer.encode(text).ids for text in texts]

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, without control tokens."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def to_json(self) -> str:
        """Return the content of its tokenizer.json."""
        return str(self._tokenizer.to_str())

    def _plain(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _count(self, ids: Sequence[int]) -> int:
        return sum(number in self._control for number in ids)

    def _in_pieces(self, texts: Sequence[str]) -> list[int]:
        ids = [*self._before]
        for place, segment in enumerate(self._prompt.segments(texts)):
            ids += self._plain(segment) if place % 2 else self._of_text(segment)
        return [*ids, *self._after]

    def _of_text(self, text: str) -> list[int]:
        pieces = encoded(
            functools.partial(self._tokenizer.encode_batch_fast, add_special_tokens=False),
            _pieces(text, self._control.values()),
        )
        ids = [number for piece in pieces for number in piece.ids]
        if self._count(ids):
            held = next(self._control[number] for number in ids if number in self._control)
            raise RowError(
                Reason.DECODE_ERROR, f"the tokenizer makes the control token {held!r} of the text"
            )
        return ids


def tokens_of(settings: TextSettings, texts: Sequence[str], *others: Sequence[str]) -> Tokens:
    """Tokenise rows with the prompt of settings, if they have one; see `tokenizer.tokenise`.

    Args:
        others: The second texts of pairs, or those of the other places of the prompt.
    """
    if settings.prompt is not None:
        return tokenise_prompts(settings, texts, *others)
    return tokenise(settings, texts, *others)


def tokenise_prompts(settings: TextSettings, *columns: Sequence[str]) -> Tokens:
    """Tokenise the prompts of rows; raises as `tokenizer.tokenise`.

    Args:
        settings: The tokenizer, the prompt and the limit.
        columns: The texts of each place, (N,). A longer row is cut at the end of the last one.
    """
    tokenizer = prompt_tokenizer(settings)
    if settings.prefix:
        columns = ([settings.prefix + text for text in columns[0]], *columns[1:])
    whole = tokenizer.prompts(*columns)
    if settings.new_tokens:
        _require_room(whole, settings)
    elif columns[1:] and max(map(len, whole), default=0) > settings.max_tokens:
        _require_room(tokenizer.prompts(*columns[:-1], [""] * len(whole)), settings)
    rows = [tokenizer.cut(ids, settings.max_tokens) for ids in whole]
    return Tokens(
        ids=joined(rows, np.int32),
        types=np.zeros(sum(map(len, rows)), np.int8) if settings.has_types else NO_TYPES,
        counts=np.fromiter(map(len, rows), np.int32, len(rows)),
        truncated=np.fromiter(
            (len(ids) > settings.max_tokens for ids in whole), np.bool_, len(rows)
        ),
        offsets=NONE,
        word_ids=NONE,
    )


def _require_room(rows: Sequence[Sequence[int]], settings: TextSettings) -> None:
    """Refuse prompts that leave no room for new tokens, or that have no token."""
    longest, least = max(map(len, rows), default=1), min(map(len, rows), default=1)
    if longest > settings.max_tokens:
        raise RowError(
            Reason.INPUT_TOO_LONG,
            f"the prompt has {longest} tokens, at most {settings.max_tokens} leave room for "
            + (f"{settings.new_tokens} new ones" if settings.new_tokens else "its last column"),
        )
    if not least:
        raise RowError(Reason.EMPTY, "the prompt has no tokens")


def prompt_tokenizer(settings: TextSettings) -> PromptTokenizer:
    """Return the tokenizer with the prompt of settings, from the node cache.

    Raises:
        JobError: The tokenizer cannot be read.
    """
    assert settings.prompt is not None, "the caller has asked"
    return _opened(str(local_tokenizer(settings)), settings.overlay, settings.prompt)


@functools.lru_cache(maxsize=4)
def _opened(path: str, overlay: str, prompt: Prompt) -> PromptTokenizer:
    return PromptTokenizer(open_tokenizer(path, overlay), prompt)


def _unknown(tokenizer: Tokenizer) -> str | None:
    """Return the token for unknown characters; None if there is none."""
    model = json.loads(tokenizer.to_str())["model"]
    number = model.get("unk_id")
    unknown: str | None = model.get("unk_token")
    return unknown if number is None else str(model["vocab"][number][0])


def _pieces(text: str, words: Iterable[str]) -> list[str]:
    """Cut a text after the first character of each occurrence of these words."""
    cuts = {0, len(text)}
    for word in words:
        place = text.find(word)
        while place >= 0:
            cuts.add(place + 1)
            place = text.find(word, place + 1)
    places = sorted(cuts)
    return [text[a:b] for a, b in itertools.pairwise(places)]
