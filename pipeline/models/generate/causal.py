"""Models that continue a text.

Rows may enter and leave a batch between steps. Keys and values are aligned on the right, so that
the next token of each row goes into the same column; the columns left of a row are masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from pipeline.models.generate.cached_model import (
    States,
    moved,
    new_cache,
    places_of,
    states_of,
)
from pipeline.models.generate.decoding import Begun, Decoding, Tensors

_SPARE_COLUMNS = 32


@dataclass
class Batch:
    """B rows in a decoder, with P columns of keys and values."""

    states: States
    """Keys and values of the tokens so far, in the last columns of each row."""
    seen: torch.Tensor
    """bool (B, P): the columns that belong to the row."""
    cache: Any = None
    """The library's cache of `states`; None if they have changed since."""

    def kept(self, rows: Sequence[int]) -> Batch:
        """Return some of the rows, in this order, without columns that no row uses."""
        chosen = torch.tensor(rows, device=self.seen.device)
        seen = self.seen[chosen]
        first = int((~seen.any(dim=0)).sum())
        states = [
            (keys[chosen, :, first:], values[chosen, :, first:]) for keys, values in self.states
        ]
        return Batch(states, seen[:, first:])

    def joined(self, other: Batch) -> Batch:
        """Return the rows of both batches, these first."""
        pairs = zip(self.states, other.states, strict=True)
        states = [(_padded([k, m], 2), _padded([v, w], 2)) for (k, v), (m, w) in pairs]
        return Batch(states, _padded([self.seen, other.seen], 1))


def _padded(parts: Sequence[torch.Tensor], axis: int) -> torch.Tensor:
    """Join tensors along axis 0, padded with zeros on the left along another axis."""
    longest = max(part.shape[axis] for part in parts)
    filled = []
    for part in parts:
        missing = [*part.shape]
        missing[axis] = longest - part.shape[axis]
        filled.append(torch.cat([part.new_zeros(missing), part], dim=axis))
    return torch.cat(filled)


class CausalDecoding(Decoding):
    """A model that continues a text."""

    def begin(self, tensors: Tensors) -> Begun:
        ids, lengths = tensors["input_ids"], tensors["attention_mask"].sum(dim=1)
        counts = lengths.tolist()
        before = [row[:count] for row, count in zip(ids.tolist(), counts, strict=True)]
        # The first step takes the last token of each.
        width = max(counts) - 1
        read = ids[:, :width] if width else torch.zeros_like(ids[:, :1])  # belongs to no row
        columns = places_of(0, read.shape[1], ids) - (read.shape[1] + 1 - lengths)[:, None]
        cache = new_cache()
        self.run_decoder(cache, read, places_of(0, read.shape[1], ids))
        states = moved(states_of(cache), columns)
        return Begun(Batch(states, columns >= 0), before, counts)

    def first_logits(self, begun: Begun) -> torch.Tensor:
        places = [len(tokens) - 1 for tokens in begun.before]
        return self.step(begun.batch, [tokens[-1] for tokens in begun.before], places)

    def step(self, batch: Batch, tokens: Sequence[int], places: Sequence[int]) -> torch.Tensor:
        """Add a token to each row; return the logits of the next one, float32 (B, V).

        Args:
            batch: B rows; changed in place.
            tokens: (B,).
            places: (B,), positions of the tokens in their rows, from 0 on.
        """
        if batch.cache is None:
            batch.cache = _growing(batch.states)
        batch.seen = torch.cat([batch.seen, batch.seen.new_ones((len(batch.seen), 1))], dim=1)
        ids, at = self.column(tokens), self.column(places)
        logits = self.run_decoder(batch.cache, ids, at, batch.seen)
        batch.states = states_of(batch.cache)
        return logits[:, -1].float()

    def plain(self, tensors: Tensors, before: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        ids = self.column([*before, *tokens[:-1]]).T
        logits = self.model(input_ids=ids, use_cache=False).logits
        answers: torch.Tensor = logits[0, -len(tokens) :]
        return answers.float()


class _Layer(DynamicLayer):  # type: ignore[misc]  # untyped
    """The keys and values of one layer: views of tensors with room for more columns."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.device, self.dtype = keys.device, keys.dtype
        self.is_initialized = True
        self._room: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add keys and values, (B, heads, T, size) each; return all."""
        assert self.keys is not None
        assert self.values is not None
        start, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if self._room is None or end > self._room[0].shape[2]:
            pairs = ((self.keys, key_states), (self.values, value_states))
            self._room = tuple(_with_room(held, more) for held, more in pairs)  # type: ignore[assignment]
        assert self._room is not None
        for room, more in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, start:end] = more
        self.keys, self.values = (room[:, :, :end] for room in self._room)
        return self.keys, self.values


def _with_room(held: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
    rows, heads, columns, size = held.shape
    room = held.new_empty((rows, heads, columns + more.shape[2] + _SPARE_COLUMNS, size))
    room[:, :, :columns] = held
    return room


def _growing(states: States) -> DynamicCache:
    """Return a cache that grows in place; the library's own copies all of it at each step."""
    cache = DynamicCache()
    cache.layers = [_Layer(keys, values) for keys, values in states]
    return cache
