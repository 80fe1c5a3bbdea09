"""The vectors of a timm model, before its classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Vectors(nn.Module):
    """One vector (B, D) per image, as timm pools it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self.model.forward_features(pixels)
        return self.model.forward_head(features, pre_logits=True)  # type: ignore[no-any-return]
