"""Base of the modules of task `generate`: models that write a text for each row of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from pipeline.models.directories.text.cached_model import CachedModel
from pipeline.models.records.grammar import Grammar

Tensors = Mapping[str, torch.Tensor]
"""Some rows as the model takes them, by the names of the input: name -> (B, ...)."""


class Begun(NamedTuple):
    """B rows before their first step."""

    batch: Any
    """What the module knows of them; its class says what that is."""
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
    def first_logits(self, begun: Begun) -> torch.Tensor:
        """Return the logits of the first token of each row, float32 (B, V)."""

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
        return self.first_logits(self.begin(tensors or {"features": features[0]}))

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def column(self, values: Sequence[int]) -> torch.Tensor:
        """Return a number of each row, int64 (B, 1)."""
        return torch.tensor(values, device=self.device)[:, None]
