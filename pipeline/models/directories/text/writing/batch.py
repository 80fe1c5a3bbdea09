"""The rows of a batch while they are written, as tensors: they enter and leave between steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

States = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer, (B, heads, P, size) each."""


@dataclass
class Batch:
    """B rows on their way through a decoder, with P columns of keys and values."""

    own: States
    """Of the tokens that the decoder has seen, those of a row in its last columns."""
    seen: torch.Tensor
    """bool (B, P): the columns that belong to the row."""
    cross: States | None = None
    """Of the S tokens of the encoder, those of a row in its first columns; None: no encoder."""
    encoded: torch.Tensor | None = None
    """bool (B, S): the columns of the encoder that belong to the row."""
    cache: Any = None
    """The library's cache of `own` and `cross`; None: they have changed since."""

    def kept(self, rows: Sequence[int]) -> Batch:
        """Return some of the rows, in this order, without columns that none of them needs."""
        chosen = torch.tensor(rows, device=self.seen.device)
        seen = self.seen[chosen]
        first = int((~seen.any(dim=0)).sum())
        batch = Batch(_taken(self.own, chosen, first), seen[:, first:])
        if self.cross is not None and self.encoded is not None:
            batch.encoded = self.encoded[chosen]
            last = int(batch.encoded.any(dim=0).sum())
            batch.encoded = batch.encoded[:, :last]
            batch.cross = _taken(self.cross, chosen, 0, last)
        return batch

    def joined(self, other: Batch) -> Batch:
        """Return the rows of both, these first."""
        seen = _padded([self.seen, other.seen], 1, is_left=True)
        batch = Batch(_joined(self.own, other.own, is_left=True), seen)
        if self.cross is not None and other.cross is not None:
            batch.cross = _joined(self.cross, other.cross, is_left=False)
            encoded = [each for each in (self.encoded, other.encoded) if each is not None]
            batch.encoded = _padded(encoded, 1, is_left=False)
        return batch


def _taken(states: States, rows: torch.Tensor, first: int, last: int | None = None) -> States:
    """Return some rows and columns of keys and values."""
    return [(keys[rows, :, first:last], values[rows, :, first:last]) for keys, values in states]


def _joined(a: States, b: States, *, is_left: bool) -> States:
    """Return the rows of both, with as many columns as the longer ones."""
    return [
        (_padded([k, m], 2, is_left=is_left), _padded([v, w], 2, is_left=is_left))
        for (k, v), (m, w) in zip(a, b, strict=True)
    ]


def _padded(parts: Sequence[torch.Tensor], axis: int, *, is_left: bool) -> torch.Tensor:
    """Join tensors along axis 0, filled up with zeros along another axis, on the left or right."""
    longest = max(part.shape[axis] for part in parts)
    found = []
    for part in parts:
        missing = [*part.shape]
        missing[axis] = longest - part.shape[axis]
        pieces = [part.new_zeros(missing), part] if is_left else [part, part.new_zeros(missing)]
        found.append(torch.cat(pieces, dim=axis))
    return torch.cat(found)
