"""Modules of task `generate`: language models that write a token for each row of a batch.

Rows of a batch may have begun at different steps: keys and values are aligned on the right, so that
the next token of each row comes into the same column, and what is left of a row is masked.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.models.directories.facts import CAUSAL
from pipeline.models.directories.text.cached_model import (
    CachedModel,
    new_cache,
    places_of,
    states_of,
)
from pipeline.models.directories.text.writing.batch import Batch, States
from pipeline.models.tasks.base import TaskSpec

_CHECKED_TOKENS, _CHECKED_STEPS, _TOLERANCE = (7, 4, 1), 3, 1e-3
Ids = Sequence[Sequence[int]]


class Decoding(CachedModel, ABC):
    """Base of both: a language model that writes."""

    @abstractmethod
    def begin(self, prompts: Ids) -> Batch:
        """Return the rows of prompts, (G,) of at least one token each, before the first step."""

    @abstractmethod
    def first(self, prompts: Ids) -> list[int]:
        """Return the token that each row gives to its first step."""

    @abstractmethod
    def place(self, num_input: int, num_output: int) -> int:
        """Return the place of the next token of a row with so many tokens of both kinds."""

    @abstractmethod
    def step(self, batch: Batch, tokens: Sequence[int], places: Sequence[int]) -> torch.Tensor:
        """Add a token to each row; return the logits of the next one, float32 (B, V).

        Args:
            batch: B rows; it is changed.
            tokens: (B,).
            places: (B,), of the tokens.
        """

    @abstractmethod
    def plain(self, prompt: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Return the logits, float32 (T, V), of the T tokens of an output, by one pass."""

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Write the first token of rows, so that a full batch can be tried before any slice.

        Args:
            input_ids: int64 (B, L), padded on the right.
            attention_mask: int64 (B, L).
        """
        lengths = attention_mask.sum(dim=1).tolist()
        prompts = [ids[:n] for ids, n in zip(input_ids.tolist(), lengths, strict=True)]
        places = [self.place(n, 0) for n in lengths]
        logits = self.step(self.begin(prompts), self.first(prompts), places)
        best = logits.max(dim=1)
        ones = torch.ones_like(best.indices, dtype=torch.int32)
        return {
            "text": logits.new_zeros((len(logits), 0), dtype=torch.uint8),
            "text_bytes": 0 * ones,
            "num_output_tokens": ones,
            "finish": 2 * ones,
            "mean_logprob": best.values - logits.logsumexp(dim=1),
        }

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def tensor(self, rows: Ids) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows padded on the right, int64 (B, L), and their lengths, int64 (B,)."""
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.int64)
        lengths = torch.tensor([len(row) for row in rows])
        return ids.to(self.device), lengths.to(self.device)

    def column(self, values: Sequence[int]) -> torch.Tensor:
        """Return a number of each row, int64 (B, 1)."""
        return torch.tensor(values, device=self.device)[:, None]


class CausalDecoding(Decoding):
    """A model that continues its prompt."""

    def begin(self, prompts: Ids) -> Batch:
        # The last token of each is the first step's.
        ids, lengths = self.tensor([[*row[:-1]] for row in prompts])
        if not ids.shape[1]:
            ids = ids.new_zeros((len(prompts), 1))  # a column that belongs to no row
        cache, width = new_cache(), ids.shape[1]
        self.run_decoder(cache, ids, places_of(0, width, ids))
        columns = places_of(0, width, ids) - (width - lengths)[:, None]
        states = states_of(cache)
        own = [(_shifted(keys, columns), _shifted(values, columns)) for keys, values in states]
        return Batch(own, columns >= 0)

    def first(self, prompts: Ids) -> list[int]:
        return [row[-1] for row in prompts]

    def place(self, num_input: int, num_output: int) -> int:
        return num_input - 1 + num_output

    def step(self, batch: Batch, tokens: Sequence[int], places: Sequence[int]) -> torch.Tensor:
        if batch.cache is None:
            from pipeline.models.directories.text.writing.growing_cache import growing

            batch.cache = growing(batch.own)
        batch.seen = _with_column(batch.seen)
        ids, at = self.column(tokens), self.column(places)
        logits = self.run_decoder(batch.cache, ids, at, batch.seen)
        batch.own = states_of(batch.cache)
        return logits[:, -1].float()

    def plain(self, prompt: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        ids = self.column([*prompt, *tokens[:-1]]).T
        logits = self.model(input_ids=ids, use_cache=False).logits
        answers: torch.Tensor = logits[0, len(prompt) - 1 :]
        return answers.float()


class TargetDecoding(Decoding):
    """A model whose decoder answers to the prompt that its encoder has read."""

    def __init__(self, model: nn.Module, start: int) -> None:
        """Take a model, and the token that its decoder begins with."""
        super().__init__(model)
        self.start = start
        self._rows_places: torch.Tensor | None = None
        decoder: Any = model.get_decoder()  # type: ignore[operator]
        for part in decoder.modules():
            if "position_ids" in inspect.signature(part.forward).parameters:
                part.register_forward_pre_hook(self._placed, with_kwargs=True)
                part.register_forward_hook(self._by_row)

    def begin(self, prompts: Ids) -> Batch:
        from transformers import EncoderDecoderCache

        ids, lengths = self.tensor(prompts)
        encoded = places_of(0, ids.shape[1], ids) < lengths[:, None]
        encoder: Any = self.model.get_encoder()  # type: ignore[operator]
        own, cross = new_cache(), new_cache()
        start = torch.full((len(ids), 1), self.start, device=self.device)
        self.run(
            EncoderDecoderCache(own, cross),
            encoder_outputs=encoder(input_ids=ids, attention_mask=encoded.long()),
            attention_mask=encoded.long(),
            decoder_input_ids=start,
        )
        # That was for the keys and values of the prompt: the start is the first step's.
        states: States = [(keys[:, :, :0], values[:, :, :0]) for keys, values in states_of(own)]
        return Batch(states, encoded[:, :0], states_of(cross), encoded)

    def first(self, prompts: Ids) -> list[int]:
        return [self.start] * len(prompts)

    def place(self, num_input: int, num_output: int) -> int:
        return num_output

    def step(self, batch: Batch, tokens: Sequence[int], places: Sequence[int]) -> torch.Tensor:
        from transformers import EncoderDecoderCache
        from transformers.modeling_outputs import BaseModelOutput

        from pipeline.models.directories.text.writing.growing_cache import growing

        assert batch.cross is not None, "begun by this class"
        assert batch.encoded is not None, "likewise"
        if batch.cache is None:
            batch.cache = EncoderDecoderCache(growing(batch.own), growing(batch.cross))
        batch.seen = _with_column(batch.seen)
        # Keys and values of it are there, so only its shape is looked at.
        hidden: Any = batch.cross[0][0].new_zeros(1, 1, 1).expand(*batch.encoded.shape, 1)
        self._rows_places = self.column(places)[:, 0]
        try:
            logits = self.run(
                batch.cache,
                encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
                attention_mask=batch.encoded.long(),
                decoder_input_ids=self.column(tokens),
                decoder_attention_mask=batch.seen.long(),
            )
        finally:
            self._rows_places = None
        batch.own = states_of(batch.cache.self_attention_cache)
        return logits[:, -1].float()

    def plain(self, prompt: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        found = self.model(
            input_ids=self.column(prompt).T,
            decoder_input_ids=self.column([self.start, *tokens[:-1]]).T,
            use_cache=False,
        )
        return found.logits[0].float()  # type: ignore[no-any-return]

    def _placed(self, module: nn.Module, given: Any, named: dict[str, Any]) -> Any:
        """Give positions of each row to a module that takes them; the library's are of a batch."""
        if self._rows_places is None or named.get("position_ids") is None:
            return None
        return given, {**named, "position_ids": self._rows_places}

    def _by_row(self, module: nn.Module, given: Any, found: torch.Tensor) -> Any:
        """Return embeddings of positions as (B, 1, D), where they are those of rows."""
        rows = self._rows_places
        return None if rows is None else found.reshape(len(rows), 1, -1)


def with_decoding(head: str, model: nn.Module, task: TaskSpec) -> Decoding:
    """Return the module that writes for a task.

    Args:
        head: As `LibraryClass.head`, of a language model.
        model: Of the library, with this head.
        task: Its rules say what the decoder begins with.

    Raises:
        JobError: Rows of the model cannot begin at different steps.
    """
    assert task.generation is not None, "the task writes"
    module: Decoding
    if head == CAUSAL:
        module = CausalDecoding(model)
    else:
        start = task.generation.rules.start
        assert start is not None, "the directory was refused otherwise"
        module = TargetDecoding(model, start)
    with torch.no_grad():
        _require_rows_alone(module)
    return module


def _require_rows_alone(module: Decoding) -> None:
    """Refuse a model whose logits change where rows begin at different steps and leave."""
    name = type(module.model).__name__
    size = module.model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    prompts = [[(31 * n + row) % size for n in range(k)] for row, k in enumerate(_CHECKED_TOKENS)]
    output = [(17 * n + 5) % size for n in range(2 * _CHECKED_STEPS)]
    try:
        batch, steps = module.begin(prompts[:2]), [0, 0]
        given = module.first(prompts[:2])
        for number in range(2 * _CHECKED_STEPS):
            if number == _CHECKED_STEPS:  # another row enters, and the first one leaves
                batch = batch.joined(module.begin(prompts[2:])).kept([1, 2])
                prompts, steps = prompts[1:], [number, 0]
                given = [given[1], *module.first(prompts[1:])]
            places = [module.place(len(p), n) for p, n in zip(prompts, steps, strict=False)]
            logits = module.step(batch, given, places)
            for row, prompt in enumerate(prompts[:2]):
                expected = module.plain(prompt, output[: steps[row] + 1])[-1]
                off = float((logits[row] - expected).abs().max())
                if not off <= _TOLERANCE * max(1.0, float(expected.abs().max())):
                    raise ValueError(f"logits are off by {off:.2g}")
            given, steps = [output[step] for step in steps], [step + 1 for step in steps]
    except Exception as error:
        told = clean_message(f"{type(error).__name__}: {error}", 200)
        raise JobError(
            f"model.task = 'generate': {name} of model.path cannot write rows that begin at "
            f"different steps: {told}; take another model"
        ) from error


def _with_column(seen: torch.Tensor) -> torch.Tensor:
    return torch.cat([seen, seen.new_ones((len(seen), 1))], dim=1)


def _shifted(states: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return states (B, heads, P, size) of which each column is another one of its row, (B, P)."""
    index = columns.clamp(min=0)[:, None, :, None]
    return states.gather(2, index.expand(-1, states.shape[1], -1, states.shape[3]))
