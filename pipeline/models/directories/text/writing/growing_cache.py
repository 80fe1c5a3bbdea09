"""Keys and values that grow in place; the library's own cache copies all of them at each step."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from pipeline.models.directories.text.cached_model import States

_SPARE_COLUMNS = 32


class _Layer(DynamicLayer):  # type: ignore[misc]  # untyped
    """The keys and values of one layer, views of tensors with room for more columns."""

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
        assert self.keys is not None, "initialised"
        assert self.values is not None, "likewise"
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


def growing(states: States) -> DynamicCache:
    """Return a cache of the library with keys and values; adding to it copies them seldom."""
    cache = DynamicCache()
    cache.layers = [_Layer(keys, values) for keys, values in states]
    return cache
