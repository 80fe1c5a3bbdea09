"""A small network over the features of job.yaml: whether a customer stays or leaves."""

from __future__ import annotations

import torch
from torch import nn

NUM_FEATURES = 13
"""age, fee, is_business, plan (3 and 1 for others), country (4), year, weekday."""


class Churn(nn.Module):
    """Features (B, 13) to logits (B, 2); they are brought to one scale first."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.BatchNorm1d(NUM_FEATURES)
        self.layers = nn.Sequential(
            nn.Linear(NUM_FEATURES, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(self.scale(x))


def churn_model() -> nn.Module:
    """Return the network; the job names its weights."""
    return Churn()
