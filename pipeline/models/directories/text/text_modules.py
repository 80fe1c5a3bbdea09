"""Modules of texts: the library's model, then pooling and layers, or its logits.

`forward` takes the tensors of a batch by name: int64 (B, L), padded on the right. Nothing in it
branches on values, so that it can be exported with dynamic B and L.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

_LEAST = 1e-9
"""Least divisor of a mean: of a text without tokens."""


class TextModule(nn.Module):
    """A model of texts that takes no type ids."""

    def __init__(self, model: nn.Module, output: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return (B, D), (B, K) or (B, L, K), as `output` makes it."""
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return self.output(outputs, attention_mask)  # type: ignore[no-any-return]


class PairModule(TextModule):
    """A model of texts that takes type ids too; without them a text is of the first type."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return (B, D), (B, K) or (B, L, K), as `output` makes it."""
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        )
        return self.output(outputs, attention_mask)  # type: ignore[no-any-return]


class Logits(nn.Module):
    """The logits of a classification head: (B, K), of tokens (B, L, K)."""

    def forward(self, outputs: Any, attention_mask: torch.Tensor) -> torch.Tensor:
        return outputs.logits  # type: ignore[no-any-return]


class Pooled(nn.Module):
    """One vector (B, D) per text, of the vectors of its tokens."""

    def __init__(self, modes: Sequence[str], num_skipped: int, layers: Sequence[nn.Module]) -> None:
        """Make the pooling.

        Args:
            modes: Those of `sentence_transformers.MODES`; the results are put side by side.
            num_skipped: Tokens of a prompt at the start that take no part.
            layers: Applied to the vectors, in order.
        """
        super().__init__()
        self.modes = tuple(modes)
        self.num_skipped = num_skipped
        self.layers = nn.Sequential(*layers)

    def forward(self, outputs: Any, attention_mask: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = outputs.last_hidden_state
        mask = attention_mask
        if self.num_skipped:
            positions = torch.arange(mask.shape[1], device=mask.device)
            mask = mask * (positions >= self.num_skipped).to(mask.dtype)
        pooled = [pool(mode, vectors, mask, self.num_skipped) for mode in self.modes]
        return self.layers(torch.cat(pooled, dim=-1))  # type: ignore[no-any-return]


def pool(mode: str, vectors: torch.Tensor, mask: torch.Tensor, first: int) -> torch.Tensor:
    """Pool the vectors of tokens as sentence-transformers does.

    Args:
        mode: One of `sentence_transformers.MODES`.
        vectors: float (B, L, D), of texts padded on the right.
        mask: int (B, L); 1 where a token takes part.
        first: Position of the first token that takes part.

    Returns:
        float (B, D).
    """
    weights = mask[:, :, None].to(vectors.dtype)
    if mode == "cls":
        return vectors[:, first]
    if mode == "max":
        return vectors.masked_fill(weights == 0, float("-inf")).amax(dim=1)
    if mode == "lasttoken":
        positions = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * positions).amax(dim=1)
        at = last[:, None, None].expand(-1, 1, vectors.shape[2])
        return torch.gather(vectors * weights, 1, at)[:, 0]
    if mode == "weightedmean":
        positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        weights = weights * positions[None, :, None].to(vectors.dtype)
    total = (vectors * weights).sum(dim=1)
    count = weights.sum(dim=1).clamp(min=_LEAST)
    return total / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)


class Normalize(nn.Module):
    """Vectors of length 1."""

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(vectors, p=2.0, dim=-1)


class Dense(nn.Module):
    """A linear layer and its activation, with the tensor names of the library."""

    def __init__(self, num_in: int, num_out: int, *, bias: bool, activation: str) -> None:
        super().__init__()
        self.linear = nn.Linear(num_in, num_out, bias=bias)
        self.activation = activation_module(activation)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.activation(self.linear(vectors))  # type: ignore[no-any-return]


def activation_module(name: str) -> nn.Module:
    """Return the module of one of `sentence_transformers.ACTIVATIONS`."""
    activations: dict[str, type[nn.Module]] = {
        "identity": nn.Identity,
        "tanh": nn.Tanh,
        "relu": nn.ReLU,
        "gelu": nn.GELU,
        "silu": nn.SiLU,
        "sigmoid": nn.Sigmoid,
    }
    return activations[name]()
