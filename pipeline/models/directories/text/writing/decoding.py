"""Base of the modules of task `generate`: models that write a token for each row of a batch.

Rows of a batch may have begun at different steps: keys and values are aligned on the right, so that
the next token of each row comes into the same column, and what is left of a row is masked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from pipeline.models.directories.text.cached_model import CachedModel
from pipeline.models.directories.text.writing.batch import Batch
from pipeline.models.records.grammar import Grammar

Tensors = Mapping[str, torch.Tensor]
"""Some rows as the model takes them, by the names of the input: name -> (B, ...)."""


class Begun(NamedTuple):
    """B rows before their first step."""

    batch: Batch
    before: list[list[int]]
    """The tokens of each row before its output, at least one; the last is the first step's."""
    num_input: list[int]
    """What the model reads of each row: tokens of its prompt, or vectors of its encoder."""


class Decoding(CachedModel, ABC):
    """A model that writes."""

    def __init__(self, model: nn.Module, text: Callable[[Sequence[int]], str]) -> None:
        """Take the library's model, or its decoder, and what makes a text of its tokens."""
        super().__init__(model)
        self.text = text
        self.grammar: Grammar | None = None
        """Of the records that it writes; None: it writes texts."""

    @abstractmethod
    def begin(self, tensors: Tensors) -> Begun:
        """Read rows."""

    @abstractmethod
    def step(self, batch: Batch, tokens: Sequence[int], places: Sequence[int]) -> torch.Tensor:
        """Add a token to each row; return the logits of the next one, float32 (B, V).

        Args:
            batch: B rows; it is changed.
            tokens: (B,).
            places: (B,), of the tokens among those of the row's decoder, from 0 on.
        """

    @abstractmethod
    def plain(self, tensors: Tensors, before: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Return the logits, float32 (T, V), of the T tokens of an output, by one pass.

        Args:
            tensors: Of one row.
            before: The tokens before the output.
            tokens: (T,).
        """

    def forward(self, *features: torch.Tensor, **tensors: torch.Tensor) -> torch.Tensor:
        """Return the logits of first tokens: a full batch can be tried before any slice.

        Args:
            features: The only tensor of the input, (B, ...);
            tensors: or several by their names.
        """
        begun = self.begin(tensors or {"features": features[0]})
        places = [len(each) - 1 for each in begun.before]
        return self.step(begun.batch, [each[-1] for each in begun.before], places)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def column(self, values: Sequence[int]) -> torch.Tensor:
        """Return a number of each row, int64 (B, 1)."""
        return torch.tensor(values, device=self.device)[:, None]


def with_column(seen: torch.Tensor) -> torch.Tensor:
    """Return a mask (B, P) with a column more, that belongs to each row."""
    return torch.cat([seen, seen.new_ones((len(seen), 1))], dim=1)
