"""Token rules: restrict the next token by a directory's rules and the grammar of records.

Also the reference check of written rows: one pass over each row alone. A greedy token is the best
of its logits, or among those that the grammar allows. Two about equally likely tokens may change
places with the shape of the batch, so a token agrees if it is the best up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from pipeline.models.generate.decoding import Decoding
from pipeline.models.generate.grammar import Grammar, Matcher
from pipeline.models.generate.spec import Generation, Rules
from pipeline.models.generate.windowed import Segment

if TYPE_CHECKING:
    from pipeline.inference.generate.greedy import ReadRows

_NEVER = float("-inf")
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_LEAST_GAP, _ROUNDINGS = 0.02, 2.0


@dataclass
class Row:
    """A row that is written."""

    number: int
    """Row number in the slice."""
    num_input: int = 0
    """Tokens of the prompt, or vectors of the encoder; 0 before it is read if unknown."""
    before: Sequence[int] = ()
    """Tokens of the decoder before the output; () before it is read."""
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0
    """Sum over the tokens."""
    finish: int | None = None
    """Index of the reason in FINISHES; None if it has not ended."""
    followers: dict[tuple[int, ...], set[int]] = field(default_factory=dict)
    """Sequence of tokens in its history -> the tokens that followed."""
    num_noted: int = 0
    """Tokens of its history that `followers` covers."""
    matcher: Matcher | None = None
    """Its record so far; None if not begun."""
    segments: list[Segment] | None = None
    """The parts of its text if it is a clip that the library has written in windows."""
    first: Row | None = None
    """Its first window, which the reference check takes instead of it."""


class AppliedRules:
    """Rules as tensors on a device."""

    def __init__(
        self, generation: Generation, device: torch.device, grammar: Grammar | None = None
    ) -> None:
        """Take rules, and the grammar of records; None if outputs are texts."""
        self._grammar = grammar
        self._room: torch.Tensor | None = None
        self._never = torch.tensor(_NEVER, device=device)
        self._rules, self._most = generation.rules, generation.max_new_tokens
        # All but these depend on the row or the step.
        rest = replace(self._rules, ends=(), start=(), languages=(), times_from=None, banned=())
        self._is_plain = replace(rest, cleans=False) == Rules()
        self._banned = torch.tensor(self._rules.banned, dtype=torch.int64, device=device)

    def __call__(self, logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        """Return logits, float32 (B, V), whose best are the next tokens; valid until the next call.

        Args:
            logits: float32 (B, V), the model's; unchanged.
            rows: (B,); the logits of rows that have ended are undefined.
        """
        if self._is_plain and not len(self._banned):
            return self._within_records(logits, logits, rows)
        allowed = logits.clone()
        if not self._is_plain:
            for values, row in zip(allowed, rows, strict=True):
                if row.finish is None:
                    self._apply(values, row)
        allowed[:, self._banned] = _NEVER
        return self._within_records(allowed, logits, rows)

    def matcher(self, row: Row) -> Matcher | None:
        """Return the matcher of a row, with all its tokens; None if it is a text."""
        if self._grammar is None:
            return None
        if row.matcher is None:
            row.matcher = self._grammar.begin()
        # A forced first token is not part of the record.
        row.matcher.take(row.tokens[int(self._is_forced(row, 0)) :])
        return row.matcher

    def _is_forced(self, row: Row, num_new: int) -> bool:
        """Tell whether the directory forces the token after `num_new` new ones."""
        return self._rules.first is not None and len(row.before) + num_new == 1

    def _within_records(
        self, allowed: torch.Tensor, logits: torch.Tensor, rows: Sequence[Row]
    ) -> torch.Tensor:
        """Return logits, (B, V), restricted to the tokens that the grammar allows.

        Where the rules forbid all of these, the grammar wins, so that every row has a record.
        """
        if self._grammar is None:
            return allowed
        matchers = [
            None if row.finish is not None or self._is_forced(row, len(row.tokens))
            else self.matcher(row)
            for row in rows
        ]  # fmt: skip
        mask = self._grammar.mask(matchers, allowed.shape[1])
        may_come = torch.from_numpy(mask).to(self._never.device)
        kept = torch.where(may_come, allowed, self._never, out=self._room_of(allowed))
        has_none = kept.amax(dim=1) == _NEVER
        if has_none.any():
            kept[has_none] = torch.where(may_come, logits, self._never)[has_none]
        return kept

    def _room_of(self, logits: torch.Tensor) -> torch.Tensor:
        """Return reused memory for logits, (B, V): allocating it in each step takes longer."""
        if self._room is None or len(self._room) < len(logits):
            self._room = torch.empty_like(logits)
        return self._room[: len(logits)]

    def _apply(self, logits: torch.Tensor, row: Row) -> None:
        """Apply the rules to the logits of a row, (V,), in place."""
        rules, num_new = self._rules, len(row.tokens)
        before = row.before
        length = len(before) + num_new
        if rules.repetition_penalty != 1.0:
            ids, penalty = [*{*before, *row.tokens}], rules.repetition_penalty
            chosen = logits[ids]
            logits[ids] = torch.where(chosen < 0, chosen * penalty, chosen / penalty)
        if rules.no_repeat_ngram or rules.banned_words:
            logits[[*self._repeating(row, [*before, *row.tokens])]] = _NEVER
        if length < rules.min_length or num_new < rules.min_new_tokens:
            logits[[*rules.ends]] = _NEVER
        if rules.first is not None and self._is_forced(row, num_new):
            _force(logits, [rules.first])
        if rules.last and num_new == self._most - 1 and self._grammar is None:
            _force(logits, [*rules.last])
        # After a forced token comes the first chosen one.
        if num_new == int(self._is_forced(row, 0)):
            logits[[*rules.banned_first]] = _NEVER

    def _repeating(self, row: Row, history: list[int]) -> set[int]:
        """Return the tokens that would complete a repeated or banned sequence."""
        banned, size = set[int](), self._rules.no_repeat_ngram
        if size and len(history) >= size - 1:
            for end in range(max(size, row.num_noted + 1), len(history) + 1):
                *some, last = history[end - size : end]
                row.followers.setdefault(tuple(some), set()).add(last)
            row.num_noted = len(history)
            banned |= row.followers.get(tuple(history[len(history) - size + 1 :]), set())
        for word in self._rules.banned_words:
            if len(word) <= len(history) and history[1 - len(word) :] == [*word[:-1]]:
                banned.add(word[-1])
        return banned


def _force(logits: torch.Tensor, ids: list[int]) -> None:
    logits[:] = _NEVER
    logits[ids] = 0.0


@torch.inference_mode()
def num_agreed(
    module: Decoding, generation: Generation, rows: Sequence[Row], precision: str, read: ReadRows
) -> int:
    """Count the rows whose every token is the best one, up to rounding.

    Of rows whose tokens were drawn, or chosen by the library, count those with this mean log
    probability, up to rounding.

    Args:
        module: The module in eager float32.
        generation: The settings by which the rows were written.
        rows: Rows that have ended.
        precision: The precision in which they were written.
        read: Reads rows.
    """
    rules = AppliedRules(generation, module.device, module.grammar)
    finfo = torch.finfo(_TYPES.get(precision, torch.float32))
    is_greedy = not generation.temperature
    return sum(_agrees(module, rules, row, finfo.eps, read, is_greedy=is_greedy) for row in rows)


def _agrees(
    module: Decoding,
    rules: AppliedRules,
    row: Row,
    eps: float,
    read: ReadRows,
    *,
    is_greedy: bool,
) -> bool:
    with read([row.number]) as tensors:
        logits = module.plain(tensors, row.before, row.tokens)
    limit = _LEAST_GAP + _ROUNDINGS * eps * float(logits.abs().max())
    if not is_greedy or row.segments is not None:
        chosen = logits.gather(1, torch.tensor(row.tokens, device=logits.device)[:, None])[:, 0]
        expected = float((chosen - logits.logsumexp(dim=1)).mean())
        return abs(row.logprob / len(row.tokens) - expected) <= limit
    seen = Row(row.number, before=row.before)
    for values, token in zip(logits, row.tokens, strict=True):
        [allowed] = rules(values[None], [seen])
        if not float(allowed.max() - allowed[token]) <= limit:
            return False
        seen.tokens.append(token)
    return True
