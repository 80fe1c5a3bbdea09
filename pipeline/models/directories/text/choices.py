"""Modules of task `choices`: the mean log-likelihood (B, K) of K answers after each prompt.

The keys and values of a prompt are computed once for all answers, and those of the tokens that all
prompts begin with once for all rows. `forward` takes `input_ids` and `attention_mask`, int64
(B, L), padded on the right, each row with at least one token.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pipeline.core.errors import JobError
from pipeline.models.generate.cached_model import (
    ONE_BY_ONE,
    TOLERANCE,
    CachedModel,
    can_share,
    moved,
    new_cache,
    places_of,
    refused_for,
    require_causal,
    states_of,
)
from pipeline.models.generate.spec import CAUSAL
from pipeline.models.tasks.base import TaskSpec
from pipeline.preprocessing.model_input import Input
from pipeline.preprocessing.texts.prompts import prompt_tokenizer

log = logging.getLogger(__name__)
_CHECKED_TOKENS, _CHECKED_ROWS, _CHECKED_ANSWERS = (7, 4, 6, 5, 3), 2, 3
_Batch = tuple[torch.Tensor, ...]
_MOST_ENDS = 4
"""Most lengths of prompts in a batch whose last logits are taken from one pass."""


class Choices(CachedModel, ABC):
    """Base of both: makes scores from log-likelihoods."""

    def __init__(self, model: nn.Module, answers: Sequence[Sequence[int]]) -> None:
        """Take a model of the library, and the token ids of K answers, at least one each."""
        super().__init__(model)
        self.prior: tuple[float, ...] = (0.0,) * len(answers)
        """Subtracted from the mean log-likelihood of each answer."""
        for number, answer in enumerate(answers):
            self.register_buffer(f"answer_{number}", torch.tensor(answer), persistent=False)
        self.num_answers = len(answers)

    @abstractmethod
    def plain(self, row: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
        """Return the mean log-likelihood of an answer (C,) to a prompt (T,), by one pass."""

    def answers(self) -> list[torch.Tensor]:
        """Return the token ids of each answer, (C,), on the device of the model."""
        return [self.get_buffer(f"answer_{number}") for number in range(self.num_answers)]

    def means(self, sums: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return float32 (B, K) of the log-likelihoods (B,) of each answer as a whole."""
        means = [total / len(answer) for total, answer in zip(sums, self.answers(), strict=True)]
        scores = torch.stack(means, dim=1)
        return scores - scores.new_tensor(self.prior)


class CausalChoices(Choices):
    """Answers that continue a prompt with the text of a row."""

    def __init__(self, model: nn.Module, answers: Sequence[Sequence[int]]) -> None:
        super().__init__(model, answers)
        self.shared: tuple[int, ...] = ()
        """The token ids that prompts begin with."""
        self._window = _window(model)
        self._longest = max(map(len, answers))
        self._shared_states: list[tuple[torch.Tensor, torch.Tensor]] = []
        """The keys and values of these tokens in each layer, (1, heads, P, size)."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return float32 (B, K)."""
        cache, lengths = new_cache(), attention_mask.sum(dim=1, keepdim=True)
        input_ids = input_ids[:, : int(lengths.max())]
        first, is_seen = self._read(cache, input_ids, lengths)
        states, sums = states_of(cache), []
        for answer in self.answers():
            total = _likelihoods(first, answer[0])
            if len(answer) > 1:
                _restore(cache, states)
                tokens = answer[:-1].expand(len(first), -1)
                mask = torch.cat([is_seen, is_seen.new_ones(tokens.shape)], dim=1)
                places = lengths + torch.arange(tokens.shape[1], device=tokens.device)
                logits = self.run_decoder(cache, tokens, places, mask, keep=tokens.shape[1])
                total = total + _likelihoods(logits, answer[1:]).sum(dim=1)
            sums.append(total)
        return self.means(sums)

    def plain(self, row: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
        ids = torch.cat([row, answer])[None]
        logits = self.model(input_ids=ids, use_cache=False).logits
        return _likelihoods(logits[:, len(row) - 1 : -1], answer).mean()

    def _read(
        self, cache: Any, input_ids: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits (B, V) behind each prompt, and the columns (B, P) that are of it.

        Where prompts have few lengths, the last token of each needs no pass of its own.
        """
        start, length = self._begin(cache, input_ids, lengths), input_ids.shape[1]
        ends = torch.unique(lengths - 1)
        is_one_pass = self.chooses_logits and len(ends) <= _MOST_ENDS
        end = length if is_one_pass else length - 1
        read, places = input_ids[:, start:end], places_of(start, end, input_ids)
        is_seen = places_of(0, end, input_ids) < lengths - (length - end)
        if is_one_pass:  # padding is masked afterwards
            logits = self.run_decoder(cache, read, places, keep=ends - start)
            place = torch.searchsorted(ends, lengths - 1)[:, :, None]
            first = logits.gather(1, place.expand(-1, -1, logits.shape[2]))[:, 0]
            return first, self._joined(cache, is_seen)
        if end > start:
            self.run_decoder(cache, read, places)
            is_seen = self._joined(cache, is_seen)
        is_seen = torch.cat([is_seen, is_seen.new_ones((len(is_seen), 1))], dim=1)
        last = input_ids.gather(1, lengths - 1)
        return self.run_decoder(cache, last, lengths - 1, is_seen)[:, -1], is_seen

    def _joined(self, cache: Any, is_seen: torch.Tensor) -> torch.Tensor:
        """Move what was read of each row next to what follows, if padding between them counts.

        Args:
            cache: Keys and values of P tokens of each row.
            is_seen: bool (B, P), which of them are of the row; the first ones.

        Returns:
            The same of the columns as they are now.
        """
        is_whole = self._window is None or is_seen.shape[1] + self._longest <= self._window
        if is_whole or bool(is_seen.all()):
            return is_seen
        missing = is_seen.shape[1] - is_seen.sum(dim=1, keepdim=True)
        columns = places_of(0, is_seen.shape[1], is_seen) - missing
        _restore(cache, moved(states_of(cache), columns))
        return columns >= 0

    def _begin(self, cache: Any, input_ids: torch.Tensor, lengths: torch.Tensor) -> int:
        """Begin with the keys and values that prompts share; return of how many tokens they are."""
        size = len(self.shared)
        if not size or input_ids.shape[1] <= size:
            return 0
        shared = torch.tensor(self.shared, device=input_ids.device)
        if not bool((input_ids[:, :size] == shared).all() & (lengths > size).all()):
            return 0
        if not self._shared_states:
            shared_cache = new_cache()
            self.run_decoder(shared_cache, shared[None], places_of(0, size, shared[None]))
            self._shared_states = states_of(shared_cache)
        for number, (keys, values) in enumerate(self._shared_states):
            rows = len(input_ids)
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), number)
        return size


class AloneChoices(CausalChoices):
    """The same of a model whose states answers cannot share: a pass for each row and answer."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return float32 (B, K)."""
        counts = attention_mask.sum(dim=1).tolist()
        rows = [ids[:count] for ids, count in zip(input_ids, counts, strict=True)]
        scores = [[self.plain(row, answer) for answer in self.answers()] for row in rows]
        return torch.stack([torch.stack(of_row) for of_row in scores]) - scores[0][0].new_tensor(
            self.prior
        )


class TargetChoices(Choices):
    """Answers of a decoder to the prompt that an encoder has read."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return float32 (B, K)."""
        from transformers import EncoderDecoderCache

        encoder: Any = self.model.get_encoder()  # type: ignore[operator]
        encoded = encoder(input_ids=input_ids, attention_mask=attention_mask)
        prompt, sums = new_cache(), []
        for answer in self.answers():
            logits = self.run(
                EncoderDecoderCache(new_cache(), prompt),
                encoder_outputs=encoded,
                attention_mask=attention_mask,
                decoder_input_ids=self._decoded(answer).expand(len(input_ids), -1),
            )
            sums.append(_likelihoods(logits, answer).sum(dim=1))
        return self.means(sums)

    def plain(self, row: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
        outputs = self.model(
            input_ids=row[None], decoder_input_ids=self._decoded(answer)[None], use_cache=False
        )
        return _likelihoods(outputs.logits, answer).mean()

    def _decoded(self, answer: torch.Tensor) -> torch.Tensor:
        config: Any = self.model.config
        return torch.cat([answer.new_tensor([config.decoder_start_token_id]), answer[:-1]])


def _window(model: nn.Module) -> int | None:
    """Return how many columns before a token its layers see at least; None: all."""
    config: Any = model.config
    text = config.get_text_config()
    sizes = [getattr(text, name, None) for name in ("sliding_window", "window_size")]
    return min((size for size in sizes if isinstance(size, int)), default=None)


def _restore(cache: Any, states: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Take off what was added since: adding makes new tensors."""
    for layer, (keys, values) in zip(cache.layers, states, strict=True):
        layer.keys, layer.values = keys, values


def _likelihoods(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the log-likelihood of each token.

    Args:
        logits: (B, V) for one token, otherwise (B, C, V) or longer: the last C are taken.
        tokens: int64 () or (C,).

    Returns:
        float32 (B,) or (B, C).
    """
    if not tokens.ndim:
        return _likelihoods(logits[:, None], tokens[None])[:, 0]
    logits = logits[:, -len(tokens) :].float()
    chosen = logits.gather(2, tokens.expand(len(logits), -1)[:, :, None])[:, :, 0]
    return chosen - logits.logsumexp(dim=2)


def with_choices(head: str, model: nn.Module, task: TaskSpec, model_input: Input) -> Choices:
    """Return the module that scores the answers of a task.

    Args:
        head: As `LibraryClass.head`, of a model that writes.
        task: Its prompts are the answers.

    Raises:
        JobError: A decoder's keys and values cannot be shared, or it is no language model.
    """
    assert model_input.text is not None, "the job's rows are texts"
    tokenizer = prompt_tokenizer(model_input.text)
    module: CausalChoices | TargetChoices
    if head == CAUSAL:
        require_causal(model, "choices")
        module = _continuing(model, tokenizer.answers(task.prompts))
    else:
        module = TargetChoices(model, tokenizer.targets(task.prompts))
        _require_shares(module, *_prompts(model))
    if task.prior_corrected:
        [ids] = tokenizer.prompts([""])
        prompt = torch.tensor([ids])
        with torch.no_grad():
            module.prior = tuple(module(prompt, torch.ones_like(prompt))[0].tolist())
    if isinstance(module, CausalChoices):
        module.shared = tuple(tokenizer.shared())
    return module


def _continuing(model: nn.Module, answers: Sequence[Sequence[int]]) -> CausalChoices:
    """Return the module that scores answers over shared states, or each alone."""
    if can_share(type(model), model.config):
        module = CausalChoices(model, answers)
        try:
            _require_shares(module, *_prompts(model))
            return module
        except JobError as error:
            log.warning(ONE_BY_ONE, error)
    return AloneChoices(model, answers)


def _prompts(model: nn.Module) -> tuple[list[_Batch], list[torch.Tensor]]:
    """Return batches of made-up prompts, and the tokens (T,) of the first of each."""
    size = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    width = max(_CHECKED_TOKENS)
    ids = (torch.arange(len(_CHECKED_TOKENS) * width) * 31 % size).view(-1, width)
    lengths = torch.tensor(_CHECKED_TOKENS)[:, None]
    mask = (torch.arange(width) < lengths).long()
    some = slice(_CHECKED_ROWS)
    rows = [ids[row, : _CHECKED_TOKENS[row]] for row in range(_CHECKED_ROWS)]
    # Few lengths and many, which are read differently.
    return [(ids[some], mask[some]), (ids, mask)], rows


@torch.no_grad()
def _require_shares(
    module: Choices, batches: Sequence[_Batch], rows: Sequence[torch.Tensor]
) -> None:
    """Refuse a model whose likelihoods change where keys and values are shared and padded.

    Args:
        batches: Each is what the module takes of some rows.
        rows: What `plain` takes of the first rows of each.
    """
    name = type(module.model).__name__
    with refused_for("choices", name, "score answers that share a prompt"):
        scores = torch.stack([module(*batch)[: len(rows)] for batch in batches])
        for row, prompt in enumerate(rows):
            for number, answer in enumerate(module.answers()[:_CHECKED_ANSWERS]):
                expected = module.plain(prompt, answer)
                off = float((scores[:, row, number] - expected).abs().max())
                if not off <= TOLERANCE * max(1.0, abs(float(expected))):
                    raise ValueError(f"log-likelihoods are off by {off:.2g}")
