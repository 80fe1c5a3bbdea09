"""The rules of a language model's directory, applied to logits as transformers does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from pipeline.models.generation import Generation, Rules

_NEVER = float("-inf")


@dataclass
class Row:
    """A row that is written."""

    number: int
    """Its place in the slice."""
    num_input: int = 0
    """What the model reads of it: tokens of its prompt, or vectors of its encoder; as long as it
    waits, 0 if only the model knows."""
    before: Sequence[int] = ()
    """The tokens of the decoder before its output; none as long as it waits."""
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0
    """Sum over the tokens."""
    finish: int | None = None
    """Place of the reason in FINISHES; None: it has not ended."""
    followers: dict[tuple[int, ...], set[int]] = field(default_factory=dict)
    """Some tokens in a row of its history -> those that came behind them."""
    num_noted: int = 0
    """Tokens of its history that are in `followers`."""

    def afresh(self) -> Row:
        """Return the row as it was before anything was written."""
        return Row(self.number, self.num_input)


class AppliedRules:
    """Rules, with tensors on a device."""

    def __init__(self, generation: Generation, device: torch.device) -> None:
        self._rules, self._most = generation.rules, generation.max_new_tokens
        # Those alone are the same for each row at any step, or no rules of a step.
        rest = replace(self._rules, ends=(), start=(), languages=(), times_from=None, banned=())
        self._is_plain = rest == Rules()
        self._banned = torch.tensor(self._rules.banned, dtype=torch.int64, device=device)

    def __call__(self, logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        """Return the logits whose best are the next tokens, float32 (B, V).

        Args:
            logits: Float32 (B, V), of the model; they stay as they are.
            rows: (B,); of rows that have ended the result means nothing.
        """
        if self._is_plain and not len(self._banned):
            return logits
        found = logits.clone()
        if not self._is_plain:
            for values, row in zip(found, rows, strict=True):
                if row.finish is None:
                    self._apply(values, row)
        found[:, self._banned] = _NEVER
        return found

    def _apply(self, logits: torch.Tensor, row: Row) -> None:
        """Change the logits, (V,), of a row in place."""
        rules, num_new = self._rules, len(row.tokens)
        before = row.before
        length = len(before) + num_new
        if rules.repetition_penalty != 1.0:
            _penalise(logits, [*{*before, *row.tokens}], rules.repetition_penalty)
        if rules.no_repeat_ngram or rules.banned_words:
            logits[[*self._repeating(row, [*before, *row.tokens])]] = _NEVER
        if length < rules.min_length or num_new < rules.min_new_tokens:
            logits[[*rules.ends]] = _NEVER
        if rules.first is not None and length == 1:
            _force(logits, [rules.first])
        if rules.last and num_new == self._most - 1:
            _force(logits, [*rules.last])
        # Behind a token that is forced comes the first that is chosen.
        if num_new == int(rules.first is not None and len(before) == 1):
            logits[[*rules.banned_first]] = _NEVER

    def _repeating(self, row: Row, history: list[int]) -> set[int]:
        """Return the tokens that would repeat what may come once, or never."""
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


def _penalise(logits: torch.Tensor, ids: list[int], penalty: float) -> None:
    chosen = logits[ids]
    logits[ids] = torch.where(chosen < 0, chosen * penalty, chosen / penalty)


def _force(logits: torch.Tensor, ids: list[int]) -> None:
    logits[:] = _NEVER
    logits[ids] = 0.0
