"""Rows of a slice that a language model writes greedily.

A batch is filled by the tokens that its rows may come to have. Where a model continues texts, rows
enter and leave as places are free: one that has ended leaves together with others, as what is left
is copied then, and rows that wait take their places. Other models write batch after batch.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from time import perf_counter
from typing import Any

import torch

from pipeline.core.failures import Failure
from pipeline.core.figures import Steps
from pipeline.inference.generate.rules import AppliedRules, Row
from pipeline.models.generate.causal import Batch, CausalDecoding
from pipeline.models.generate.decoding import Decoding, LibraryDecoding
from pipeline.models.generate.spec import FINISHES, Generation
from pipeline.preprocessing.model_input import Arrays as Inputs
from pipeline.preprocessing.model_input import BatchLimits
from pipeline.process.liveness import still_alive

EOS, STOP, LENGTH = map(FINISHES.index, ("eos", "stop", "length"))
_LEAVE_TOGETHER = 8
"""Rows leave when one of so many has ended."""
_TAIL_TOKENS = 64
_REPEATED_TOKENS, _MOST_PERIOD, _LEAST_TIMES = 24, 16, 4
Decode = Callable[[Sequence[int]], str]
"""Tokens -> their text."""
Read = Callable[[Sequence[int]], AbstractContextManager[Mapping[str, torch.Tensor]]]
"""Places in the slice -> the tensors of these rows on the device, as the model takes them."""


@dataclass
class Spent:
    """What was computed."""

    input_tokens: int = 0
    padded_tokens: int = 0
    """Of what the model reads, with the padding."""
    output_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    steps: Steps = field(default_factory=Steps)


@dataclass
class Outputs:
    """The rows of a slice as they end."""

    inputs: Inputs
    failures: list[Failure | None]
    written: dict[int, Row] = field(default_factory=dict)
    """Place in the slice -> the row."""
    spent: Spent = field(default_factory=Spent)


class Writing:
    """Rows that are written, and those that wait."""

    def __init__(
        self,
        module: Decoding,
        generation: Generation,
        read: Read,
        groups: Iterable[list[Row]],
        limits: BatchLimits,
        spent: Spent,
    ) -> None:
        """Take rows.

        Args:
            module: On its device, in eval mode.
            generation: How texts are written.
            read: Reads rows.
            groups: Rows that can be read together, in the order in which they enter, the longest of
                each first. Nothing is written of them yet.
            limits: Rows, and tokens of prompts and outputs, at once.
            spent: Is added to.
        """
        self.active: list[Row] = []
        """The rows of the batch, in its order, those of the last step that have ended among them;
        after an error the rows at fault."""
        self._groups = deque(groups)
        self._module, self._generation, self._read = module, generation, read
        self._limits, self._spent = limits, spent
        self._batch: Batch | None = None
        self._still_alive = partial(still_alive, threading.get_ident())

    def __bool__(self) -> bool:
        return bool(self._groups) or any(row.finish is None for row in self.active)

    @cached_property
    def _rules(self) -> AppliedRules:
        # In the first step, whose rows are at fault if the device has no room for them.
        return AppliedRules(self._generation, self._module.device, self._module.grammar)

    @torch.inference_mode()
    def advance(self) -> list[Row]:
        """Let some rows enter, or write a token for each; return those that have ended with it.

        Models that the library runs write to some rows as a whole.

        Raises:
            Exception: Any error of the model or the device; the rows at fault are among `active`,
                and nothing can be written with this object any more.
        """
        began = perf_counter()
        self._leave()
        group = self._entering()
        before = [row for row in self.active if row.finish is None]
        if isinstance(self._module, CausalDecoding):
            if group:
                with self._begun(group) as batch:
                    self._batch = batch if self._batch is None else self._batch.joined(batch)
            else:
                assert self._batch is not None, "a row enters where none is active"
                self._add_tokens(self._module.step(self._batch, *self._given()))
        else:
            assert isinstance(self._module, LibraryDecoding), "there are two ways"
            with self._begun(group) as read:
                most = self._generation.max_new_tokens
                self._module.write(read, most, self._add_tokens, self._have_ended)
        self._spent.decode_s += perf_counter() - began
        return [row for row in before if row.finish is not None]

    def _entering(self) -> list[Row]:
        """Let the next rows enter that there is room for, and that can be read together."""
        if not self._groups:
            return []
        first = self._groups[0]
        longest = max(row.num_input for row in [*self.active, first[0]])
        most = self._limits.rows
        if self._limits.tokens:
            most = min(most, self._limits.tokens // (longest + self._generation.max_new_tokens))
        group = first[: max(0 if self.active else 1, most - len(self.active))]
        self.active += group  # before all else: they are at fault if it fails
        if len(group) < len(first):
            self._groups[0] = first[len(group) :]
        else:
            self._groups.popleft()
        return group

    @contextmanager
    def _begun(self, group: Sequence[Row]) -> Iterator[Any]:
        """Read rows, and have their batch during the body."""
        reads = perf_counter()
        with self._read([row.number for row in group]) as tensors:
            begun = self._module.begin(tensors)
            for row, before, num_input in zip(group, begun.before, begun.num_input, strict=True):
                row.before, row.num_input = before, num_input
            self._spent.input_tokens += sum(begun.num_input)
            self._spent.padded_tokens += len(group) * max(begun.num_input)
            read_s = perf_counter() - reads
            self._spent.prefill_s += read_s
            self._spent.decode_s -= read_s  # which is counted as a whole
            yield begun.batch

    def _given(self) -> tuple[list[int], list[int]]:
        """Return the token that each row gives to the next step, and its place."""
        tokens, places = [], []
        for row in self.active:
            tokens.append((row.tokens or row.before)[-1])
            # A place behind the last of the model does not exist.
            has_ended = row.finish is not None
            places.append(0 if has_ended else len(row.before) - 1 + len(row.tokens))
        return tokens, places

    def _add_tokens(self, logits: torch.Tensor) -> torch.Tensor:
        """Add the next token to each row that has not ended.

        It is called after each pass of the model and notes that the slice gets on, so that a limit
        of time is one of steps and not of rows.

        Returns:
            Logits whose best are these tokens, (B, V), until the next call.
        """
        self._still_alive(num_tokens=sum(row.finish is None for row in self.active))
        allowed = self._rules(logits, self.active)
        best = allowed.argmax(dim=1)
        sums = logits.gather(1, best[:, None])[:, 0] - logits.logsumexp(dim=1)
        for row, token, logprob in zip(self.active, best.tolist(), sums.tolist(), strict=True):
            if row.finish is None:
                row.tokens.append(token)
                row.logprob += logprob
                row.finish = self._finish_of(row, token)
                self._spent.output_tokens += 1
        self._spent.steps += Steps(1, len(self.active))
        return allowed

    def _have_ended(self) -> torch.Tensor:
        ended = [row.finish is not None for row in self.active]
        return torch.tensor(ended, device=self._module.device)

    def _finish_of(self, row: Row, token: int) -> int | None:
        """Return why a row ends with its last token; None if it goes on."""
        if (matcher := self._rules.matcher(row)) is not None and matcher.is_done:
            return STOP
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
        tail = self._module.text(tokens[-size:])
        if not any(text in tail for text in stop):
            return False
        # The beginning of a tail may be decoded otherwise than within the whole.
        return len(tokens) <= size or any(text in self._module.text(tokens) for text in stop)

    def _leave(self) -> None:
        """Take the rows that have ended out of the batch, if they are enough."""
        left = [index for index, row in enumerate(self.active) if row.finish is None]
        num_ended = len(self.active) - len(left)
        if not num_ended or num_ended * _LEAVE_TOGETHER < len(self.active):
            return
        if self._batch is not None:
            self._batch = self._batch.kept(left) if left else None
        self.active = [self.active[index] for index in left]


def text_of(row: Row, generation: Generation, decode: Decode) -> str:
    """Return the text of a row, without what stopped it."""
    text = decode(row.tokens)
    places = [text.find(stop) for stop in generation.stop] if row.finish == STOP else []
    return text[: min((place for place in places if place >= 0), default=len(text))]


def is_repeating(tokens: Sequence[int]) -> bool:
    """Tell whether an output ends in the same few tokens again and again."""
    for period in range(1, _MOST_PERIOD + 1):
        size = max(_REPEATED_TOKENS, _LEAST_TIMES * period)
        tail = tokens[-size:]
        if len(tail) == size and tail[period:] == tail[:-period]:
            return True
    return False
