"""Modules of texts: the library's model, then pooling and layers, or its logits.

`forward` takes the tensors of a batch by name: int64 (B, L), padded on the right. Nothing in it
branches on values, so that it can be exported with dynamic B and L.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.core.schema import EMBEDDINGS
from pipeline.models.directories.facts import Layer, Pooling
from pipeline.models.directories.tensors import read_headers, read_tensors
from pipeline.models.tasks.multi_vector import KEPT
from pipeline.models.weights.state_dict import load_state

_LEAST = 1e-9
"""Least divisor of a mean: of a text without tokens."""


class TextModule(nn.Module):
    """A model of texts; without token types a text is of the first type."""

    def __init__(self, model: nn.Module, output: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return (B, D), (B, K) or (B, L, K), as `output` makes it."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, **types)
        return self.output(outputs, attention_mask)  # type: ignore[no-any-return]


class Logits(nn.Module):
    """The logits of a classification head: (B, K), of tokens (B, L, K)."""

    def forward(self, outputs: Any, attention_mask: torch.Tensor) -> torch.Tensor:
        return outputs.logits  # type: ignore[no-any-return]


class Splade(nn.Module):
    """A weight of each token of the vocabulary, (B, V): log(1 + relu) of its largest logit."""

    def forward(self, outputs: Any, attention_mask: torch.Tensor) -> torch.Tensor:
        # The function grows with the logit, so that the largest comes first: (B, V), not (B, L, V).
        logits = outputs.logits.masked_fill(attention_mask[:, :, None] == 0, 0.0)
        return torch.log1p(torch.relu(logits.amax(dim=1)))


class TokenVectors(TextModule):
    """The vector of each token, and which of them are kept."""

    def __init__(self, model: nn.Module, path: Path, pooling: Pooling) -> None:
        """Read the weights of the layers over the vectors.

        Raises:
            JobError: The weights of a layer do not fit.
        """
        super().__init__(model, _Hidden())
        self.layers = _layers(path, pooling.token_layers)
        self.skipped: torch.Tensor
        skipped = torch.tensor(pooling.skipped_ids, dtype=torch.int64)
        self.register_buffer("skipped", skipped, persistent=False)

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return `embeddings`, float (B, L, D), and `kept`, bool (B, L)."""
        vectors = super().forward(input_ids, attention_mask, token_type_ids)
        kept = (attention_mask != 0) & ~torch.isin(input_ids, self.skipped)
        return {EMBEDDINGS: self.layers(vectors), KEPT: kept}


class _Hidden(nn.Module):
    def forward(self, outputs: Any, attention_mask: torch.Tensor) -> torch.Tensor:
        return outputs.last_hidden_state  # type: ignore[no-any-return]


class Pooled(nn.Module):
    """One vector (B, D) per text, of the vectors of its tokens."""

    def __init__(self, path: Path, pooling: Pooling) -> None:
        """Make the pooling, and read the weights of the layers before and behind it.

        Raises:
            JobError: The weights of a layer do not fit.
        """
        super().__init__()
        self.modes, self.num_skipped = pooling.modes, pooling.prompt_tokens
        self.token_layers = _layers(path, pooling.token_layers)
        self.layers = _layers(path, pooling.layers)

    def forward(self, outputs: Any, attention_mask: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.token_layers(outputs.last_hidden_state)
        mask = attention_mask
        if self.num_skipped:
            positions = torch.arange(mask.shape[1], device=mask.device)
            mask = mask * (positions >= self.num_skipped).to(mask.dtype)
        pooled = [pool(mode, vectors, mask, self.num_skipped) for mode in self.modes]
        return self.layers(torch.cat(pooled, dim=-1))  # type: ignore[no-any-return]


def pool(mode: str, vectors: torch.Tensor, mask: torch.Tensor, first: int) -> torch.Tensor:
    """Pool the vectors of tokens as sentence-transformers does.

    Args:
        mode: One of `facts.MODES`.
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


class Truncate(nn.Module):
    """The first numbers of each vector."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors[..., : self.length]


class LayerNorm(nn.Module):
    """A layer norm, with the tensor names of the library."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(layer.in_features)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.norm(vectors)  # type: ignore[no-any-return]


class Dense(nn.Module):
    """A linear layer and its activation, with the tensor names of the library."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias)
        self.activation = getattr(nn, layer.activation)()
        self.has_residual = layer.residual
        if layer.residual and layer.in_features != layer.out_features:
            self.residual = nn.Linear(layer.in_features, layer.out_features, bias=False)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        given: torch.Tensor = self.activation(self.linear(vectors))
        if not self.has_residual:
            return given
        return given + (self.residual(vectors) if hasattr(self, "residual") else vectors)


def _layers(path: Path, layers: Sequence[Layer]) -> nn.Sequential:
    return nn.Sequential(*(_layer(path, layer) for layer in layers))


def _layer(path: Path, layer: Layer) -> nn.Module:
    if layer.name == "normalize":
        return Normalize()
    if layer.name == "truncate":
        return Truncate(layer.out_features)
    module = (Dense if layer.name == "dense" else LayerNorm)(layer)
    folder = path / layer.at
    tensors = read_tensors(folder, read_headers(folder))
    if not layer.at:  # Stanford's ColBERT has it beside the weights of the encoder
        tensors = {name: tensors[name] for name in module.state_dict() if name in tensors}
    load_state(module, tensors, None, f"model.path: {layer.at}model.safetensors", layer.name)
    return module
