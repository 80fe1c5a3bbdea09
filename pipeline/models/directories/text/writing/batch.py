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
    cache: Any = None
    """The library's cache of `own`; None: it has changed since."""

    def kept(self, rows: Sequence[int]) -> Batch:
        """Return some of the rows, in this order, without columns that none of them needs."""
        chosen = torch.tensor(rows, device=self.seen.device)
        seen = self.seen[chosen]
        first = int((~seen.any(dim=0)).sum())
        own = [(keys[chosen, :, first:], values[chosen, :, first:]) for keys, values in self.own]
        return Batch(own, seen[:, first:])

    def joined(self, other: Batch) -> Batch:
        """Return the rows of both, these first."""
        pairs = zip(self.own, other.own, strict=True)
        own = [(_padded([k, m], 2), _padded([v, w], 2)) for (k, v), (m, w) in pairs]
        return Batch(own, _padded([self.seen, other.seen], 1))


def _padded(parts: Sequence[torch.Tensor], axis: int) -> torch.Tensor:
    """Join tensors along axis 0, filled up with zeros along another axis, on the left."""
    longest = max(part.shape[axis] for part in parts)
    found = []
    for part in parts:
        missing = [*part.shape]
        missing[axis] = longest - part.shape[axis]
        found.append(torch.cat([part.new_zeros(missing), part], dim=axis))
    return torch.cat(found)
