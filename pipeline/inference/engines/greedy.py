"""Rows of a slice that a language model writes greedily: they enter and leave as places are free.

A batch is filled by the tokens that its rows may come to have. A row that has ended leaves it
together with others, as what is left is copied then, and rows that wait take their places.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

from pipeline.inference.engines.rules import AppliedRules, Row
from pipeline.models.directories.text.writing.batch import Batch
from pipeline.models.directories.text.writing.decoding import Decoding
from pipeline.models.generation import FINISHES, Generation
from pipeline.preprocessing.model_input import BatchLimits

EOS, STOP, LENGTH = map(FINISHES.index, ("eos", "stop", "length"))
_PREFILL_TOKENS = 4_096
"""Tokens of prompts, padding included, that enter at once."""
_LEAVE_TOGETHER = 8
"""Rows leave when one of so many has ended."""
_TAIL_TOKENS = 64
_REPEATED_TOKENS, _MOST_PERIOD, _LEAST_TIMES = 24, 16, 4
Decode = Callable[[Sequence[int]], str]
"""Tokens -> their text."""


@dataclass
class Spent:
    """What was computed."""

    input_tokens: int = 0
    padded_tokens: int = 0
    """Of prompts, with the padding."""
    output_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0


class Writing:
    """Rows that are written, and those that wait."""

    def __init__(
        self,
        module: Decoding,
        generation: Generation,
        decode: Decode,
        rows: Iterable[Row],
        limits: BatchLimits,
        spent: Spent,
    ) -> None:
        """Take rows; the longest prompts begin.

        Args:
            module: On its device, in eval mode.
            generation: How texts are written.
            decode: Decodes outputs.
            rows: Nothing is written of them yet.
            limits: Rows, and tokens of prompts and outputs, at once.
            spent: Is added to.
        """
        self.active: list[Row] = []
        """The rows of the batch, in its order; some may have ended."""
        self.waiting = deque(sorted(rows, key=lambda row: -len(row.prompt)))
        self._module, self._generation, self._decode = module, generation, decode
        self._limits, self._spent = limits, spent
        self._rules = AppliedRules(generation, module.device)
        self._batch: Batch | None = None

    def __bool__(self) -> bool:
        return bool(self.active or self.waiting)

    @torch.inference_mode()
    def advance(self) -> list[Row]:
        """Let some rows enter, or write a token for each; return those that have ended with it.

        Each call is a step forward that takes about as long as one pass of the model, so that a
        limit of time is one of steps and not of rows.

        Raises:
            Exception: Any error of the model or the device; the rows at fault are among `active`.
        """
        began = perf_counter()
        if group := self._entering():
            self._enter(group)
            self._spent.prefill_s += perf_counter() - began
            return []
        assert self._batch is not None, "a row enters where none is active"
        logits = self._module.step(self._batch, *self._given())
        best = self._rules(logits, self.active).argmax(dim=1)
        sums = logits.gather(1, best[:, None])[:, 0] - logits.logsumexp(dim=1)
        before = [row for row in self.active if row.finish is None]
        for row, token, logprob in zip(self.active, best.tolist(), sums.tolist(), strict=True):
            if row.finish is None:
                row.tokens.append(token)
                row.logprob += logprob
                row.finish = self._finish_of(row, token)
                self._spent.output_tokens += 1
        ended = [row for row in before if row.finish is not None]
        self._leave()
        self._spent.decode_s += perf_counter() - began
        return ended

    def abandon(self) -> list[Row]:
        """Empty the batch; return its rows that have not ended, as they were at first."""
        rows = [row.afresh() for row in self.active if row.finish is None]
        self.active, self._batch = [], None
        return rows

    def _entering(self) -> list[Row]:
        """Take the next rows that there is room for."""
        group: list[Row] = []
        most_new = self._generation.max_new_tokens
        longest = max((len(row.prompt) for row in self.active), default=0)
        while self.waiting:
            longest = max(longest, len(self.waiting[0].prompt))
            num_rows = len(self.active) + len(group) + 1
            is_full = num_rows > self._limits.rows or (
                0 < self._limits.tokens < num_rows * (longest + most_new)
            )
            # The first of a group has the longest prompt.
            is_much = group and (len(group) + 1) * len(group[0].prompt) > _PREFILL_TOKENS
            if (is_full and num_rows > 1) or is_much:
                break
            group.append(self.waiting.popleft())
        return group

    def _enter(self, group: list[Row]) -> None:
        self.active += group  # first of all: they are at fault if it fails
        prompts = [row.prompt for row in group]
        begun = self._module.begin(prompts)
        self._batch = begun if self._batch is None else self._batch.joined(begun)
        self._spent.input_tokens += sum(map(len, prompts))
        self._spent.padded_tokens += len(prompts) * max(map(len, prompts))

    def _given(self) -> tuple[list[int], list[int]]:
        """Return the token that each row gives to the next step, and its place."""
        tokens = self._module.first([row.prompt for row in self.active])
        places = [0] * len(tokens)
        for index, row in enumerate(self.active):
            if row.finish is None:  # a place behind the last of the model does not exist
                tokens[index] = row.tokens[-1] if row.tokens else tokens[index]
                places[index] = self._module.place(len(row.prompt), len(row.tokens))
        return tokens, places

    def _finish_of(self, row: Row, token: int) -> int | None:
        """Return why a row ends with its last token; None if it goes on."""
        is_last = len(row.tokens) >= self._generation.max_new_tokens
        # Where there is no more room, rules may force an end.
        if token in self._generation.rules.ends and not (is_last and self._generation.rules.last):
            return EOS
        if self._generation.stop and self._stops(row.tokens):
            return STOP
        # Nothing sensible can follow what is not finite.
        return LENGTH if is_last or not math.isfinite(row.logprob) else None

    def _stops(self, tokens: Sequence[int]) -> bool:
        stop = self._generation.stop
        size = max(_TAIL_TOKENS, 2 * max(len(text.encode()) for text in stop))
        tail = self._decode(tokens[-size:])
        if not any(text in tail for text in stop):
            return False
        # The beginning of a tail may be decoded otherwise than within the whole.
        return len(tokens) <= size or any(text in self._decode(tokens) for text in stop)

    def _leave(self) -> None:
        """Take the rows that have ended out of the batch, if they are enough."""
        left = [index for index, row in enumerate(self.active) if row.finish is None]
        num_ended = len(self.active) - len(left)
        if not num_ended or num_ended * _LEAVE_TOGETHER < len(self.active):
            return
        self.active = [self.active[index] for index in left]
        assert self._batch is not None
        self._batch = self._batch.kept(left) if left else None


def text_of(row: Row, generation: Generation, decode: Decode) -> str:
    """Return the text of a row, without what stopped it."""
    text = decode(row.tokens)
    places = [text.find(each) for each in generation.stop] if row.finish == STOP else []
    return text[: min((place for place in places if place >= 0), default=len(text))]


def is_repeating(tokens: Sequence[int]) -> bool:
    """Tell whether an output ends in the same few tokens again and again."""
    for period in range(1, _MOST_PERIOD + 1):
        size = max(_REPEATED_TOKENS, _LEAST_TIMES * period)
        tail = tokens[-size:]
        if len(tail) == size and tail[period:] == tail[:-period]:
            return True
    return False
