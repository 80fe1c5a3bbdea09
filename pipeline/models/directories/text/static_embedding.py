"""A vector for each token of the vocabulary, as StaticEmbedding of sentence-transformers has."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from pipeline.models.directories.tensors import read_headers, read_tensors


class TokenVectors(NamedTuple):
    """What `pooling.Pooled` takes."""

    last_hidden_state: torch.Tensor
    """float32 (B, L, D)."""


class StaticEmbedding(nn.Module):
    """Look up the vectors of tokens."""

    vectors: torch.Tensor
    """float32 (V, D)."""

    def __init__(self, folder: Path) -> None:
        """Read the vectors, of model2vec with the mapping and the weights of tokens beside them.

        Raises:
            JobError: They are quantised.
        """
        super().__init__()
        tensors = read_tensors(folder, read_headers(folder))
        if (vectors := tensors.get("embedding.weight")) is None:
            vectors = tensors["embeddings"]
            if "mapping" in tensors:
                vectors = vectors[tensors["mapping"].long()]
            if "weights" in tensors:
                vectors = vectors.float() * tensors["weights"][:, None]
        self.register_buffer("vectors", vectors.float())

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> TokenVectors:
        return TokenVectors(nn.functional.embedding(input_ids, self.vectors))
