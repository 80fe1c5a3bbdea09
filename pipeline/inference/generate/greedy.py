"""The greedy loop: a language model writes the rows of a slice.

A batch is filled by the tokens that its rows may come to have. If the model continues texts, rows
enter as places become free; rows that have ended leave several at a time, because the rest is
copied then. Other models write batch after batch.
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
from typing import Any, Protocol

import torch

from pipeline.core.failures import Failure
from pipeline.core.figures import Steps
from pipeline.inference.generate.rules import AppliedRules, Row
from pipeline.models.generate.causal import Batch, CausalDecoding
from pipeline.models.generate.decoding import Decoding, LibraryDecoding
from pipeline.models.generate.spec import FINISHES, Generation
from pipeline.models.generate.windowed import Clips, WindowedDecoding
from pipeline.preprocessing.model_input import BatchLimits, Inputs
from pipeline.process.liveness import still_alive

EOS, STOP, LENGTH = map(FINISHES.index, ("eos", "stop", "length"))
_LEAVE_TOGETHER = 8
"""Rows leave when one in this many has ended."""
_TAIL_TOKENS = 64
_REPEATED_TOKENS, _MOST_PERIOD, _LEAST_TIMES = 24, 16, 4
Decode = Callable[[Sequence[int]], str]
"""Tokens -> text."""
ReadRows = Callable[[Sequence[int]], AbstractContextManager[Mapping[str, torch.Tensor]]]
"""Row numbers in the slice -> the model input of these rows, on the device."""


@dataclass
class Spent:
    """Counts and seconds of what was computed."""

    input_tokens: int = 0
    padded_tokens: int = 0
    """Input tokens and their padding."""
    output_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    steps: Steps = field(default_factory=Steps)


@dataclass
class Outputs:
    """The rows of a slice that have ended."""

    inputs: Inputs
    failures: list[Failure | None]
    written: dict[int, Row] = field(default_factory=dict)
    """Row number in the slice -> row."""
    spent: Spent = field(default_factory=Spent)


class RowWriter(Protocol):
    """Writes rows, some tokens per call of `advance`; true until all have ended."""

    active: list[Row]
    """After an error the rows at fault."""

    def __bool__(self) -> bool: ...

    def advance(self) -> list[Row]:
        """Write tokens; return the rows that have ended.

        Raises:
            Exception: Any error of the model or the device; this object cannot be used any more.
        """
        ...


class Writing(RowWriter):
    """The batch that is being written, and the rows that wait."""

    def __init__(
        self,
        module: Decoding,
        generation: Generation,
        read: ReadRows,
        groups: Iterable[list[Row]],
        limits: BatchLimits,
        spent: Spent,
    ) -> None:
        """Take rows.

        Args:
            module: On its device, in eval mode.
            generation: The settings.
            read: Reads rows.
            groups: New rows that can be read together, in the order in which they enter, the
                longest of each group first.
            limits: Rows, and tokens of prompts and outputs, of a batch.
            spent: Counts and seconds are added to it.
        """
        self.active: list[Row] = []
        """The rows of the batch in order, also those that ended in the last step; after an error
        the rows at fault."""
        self._groups = deque(groups)
        self._module, self._generation, self._read = module, generation, read
        self._limits, self._spent = limits, spent
        self._batch: Batch | None = None
        self._still_alive = partial(still_alive, threading.get_ident())

    def __bool__(self) -> bool:
        return bool(self._groups) or any(row.finish is None for row in self.active)

    @cached_property
    def _rules(self) -> AppliedRules:
        # Made in the first step, whose rows are at fault if the device lacks memory.
        return AppliedRules(self._generation, self._module.device, self._module.grammar)

    @torch.inference_mode()
    def advance(self) -> list[Row]:
        """Let rows enter, or write a token of each row; return the rows that have ended with it.

        A model that the library runs writes a whole batch.

        Raises:
            Exception: Any error of the model or the device; the rows at fault are among `active`,
                and this object cannot be used any more.
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
                if isinstance(self._module, WindowedDecoding) and isinstance(read, Clips):
                    for row, clip in zip(group, read.features[:, None], strict=True):
                        self._write_clip(self._module, row, clip)
                else:
                    self._module.write(read, most, self._add_tokens, self._have_ended)
        self._spent.decode_s += perf_counter() - began
        return [row for row in before if row.finish is not None]

    def _entering(self) -> list[Row]:
        """Return the next rows that fit and can be read together, and add them to the batch."""
        if not self._groups:
            return []
        first = self._groups[0]
        longest = max(row.num_input for row in [*self.active, first[0]])
        most = self._limits.rows
        if self._limits.tokens:
            most = min(most, self._limits.tokens // (longest + self._generation.max_new_tokens))
        group = first[: max(0 if self.active else 1, most - len(self.active))]
        self.active += group  # first of all: they are at fault if reading fails
        if len(group) < len(first):
            self._groups[0] = first[len(group) :]
        else:
            self._groups.popleft()
        return group

    @contextmanager
    def _begun(self, group: Sequence[Row]) -> Iterator[Any]:
        """Read rows; yield their batch."""
        reads = perf_counter()
        with self._read([row.number for row in group]) as tensors:
            begun = self._module.begin(tensors)
            for row, before, num_input in zip(group, begun.before, begun.num_input, strict=True):
                row.before, row.num_input = before, num_input
            self._spent.input_tokens += sum(begun.num_input)
            self._spent.padded_tokens += len(group) * max(begun.num_input)
            read_s = perf_counter() - reads
            self._spent.prefill_s += read_s
            self._spent.decode_s -= read_s  # `advance` adds all of its time
            yield begun.batch

    def _given(self) -> tuple[list[int], list[int]]:
        """Return the last token of each row, and its position."""
        tokens, places = [], []
        for row in self.active:
            tokens.append((row.tokens or row.before)[-1])
            # A row that has ended may be at the model's last position.
            has_ended = row.finish is not None
            places.append(0 if has_ended else len(row.before) - 1 + len(row.tokens))
        return tokens, places

    def _add_tokens(self, logits: torch.Tensor) -> torch.Tensor:
        """Add the next token to each row that has not ended.

        Called after each pass of the model; it reports progress, so that the time limit applies to
        a step and not to a row.

        Returns:
            Logits whose best are these tokens, (B, V); valid until the next call.
        """
        num_tokens = sum(row.finish is None for row in self.active)
        self._note_step(num_tokens, len(self.active))
        allowed = self._rules(logits, self.active)
        best = allowed.argmax(dim=1)
        sums = logits.gather(1, best[:, None])[:, 0] - logits.logsumexp(dim=1)
        for row, token, logprob in zip(self.active, best.tolist(), sums.tolist(), strict=True):
            if row.finish is None:
                row.tokens.append(token)
                row.logprob += logprob
                row.finish = finish_of(row, self._generation, self._rules, self._module.text)
        return allowed

    def _note_step(self, num_tokens: int = 1, num_rows: int = 1) -> None:
        self._still_alive(num_tokens=num_tokens)
        self._spent.output_tokens += num_tokens
        self._spent.steps += Steps(1, num_rows)

    def _write_clip(self, module: WindowedDecoding, row: Row, features: torch.Tensor) -> None:
        """Let the library write a clip in windows."""
        most = self._generation.max_new_tokens
        windows, row.segments = module.write_clip(features, most, self._note_step)
        row.tokens = [token for window in windows for token in window.tokens]
        row.logprob = sum(window.logprob for window in windows)
        row.finish = EOS if module.have_ended(windows) else LENGTH
        row.first = Row(row.number, segments=[], **vars(windows[0]))

    def _have_ended(self) -> torch.Tensor:
        ended = [row.finish is not None for row in self.active]
        return torch.tensor(ended, device=self._module.device)

    def _leave(self) -> None:
        """Remove the rows that have ended from the batch, if they are enough."""
        left = [index for index, row in enumerate(self.active) if row.finish is None]
        num_ended = len(self.active) - len(left)
        if not num_ended or num_ended * _LEAVE_TOGETHER < len(self.active):
            return
        if self._batch is not None:
            self._batch = self._batch.kept(left) if left else None
        self.active = [self.active[index] for index in left]


def finish_of(row: Row, generation: Generation, rules: AppliedRules, text: Decode) -> int | None:
    """Return why a row ends with its last token; None if it does not."""
    if (matcher := rules.matcher(row)) is not None and matcher.is_done:
        return STOP
    is_last = len(row.tokens) >= generation.max_new_tokens
    # At the length limit the rules may force an end token.
    if row.tokens[-1] in generation.rules.ends and not (is_last and generation.rules.last):
        return EOS
    if generation.stop and _stops(row.tokens, generation.stop, text):
        return STOP
    # Nothing sensible can follow logits that are not finite.
    return LENGTH if is_last or not math.isfinite(row.logprob) else None


def _stops(tokens: Sequence[int], stop: Sequence[str], decode: Decode) -> bool:
    size = max(_TAIL_TOKENS, 2 * max(len(text.encode()) for text in stop))
    tail = decode(tokens[-size:])
    if not any(text in tail for text in stop):
        return False
    # The beginning of the tail may decode differently within the whole.
    return len(tokens) <= size or any(text in decode(tokens) for text in stop)


def text_of(row: Row, generation: Generation, decode: Decode) -> str:
    """Return the text of a row, without the stop text."""
    if row.segments is not None:
        return "".join(segment.text for segment in row.segments)
    text = decode(row.tokens)
    places = [text.find(stop) for stop in generation.stop] if row.finish == STOP else []
    return text[: min((place for place in places if place >= 0), default=len(text))]


def is_repeating(tokens: Sequence[int]) -> bool:
    """Tell whether an output ends in a repeated sequence of a few tokens."""
    for period in range(1, _MOST_PERIOD + 1):
        size = max(_REPEATED_TOKENS, _LEAST_TIMES * period)
        tail = tokens[-size:]
        if len(tail) == size and tail[period:] == tail[:-period]:
            return True
    return False
