"""The network that tables.py measures."""

from __future__ import annotations

from torch import nn


def mlp(num_features: int, hidden: int = 256) -> nn.Module:
    """Return a network of two hidden layers, features (B, F) to one number (B, 1)."""
    return nn.Sequential(
        nn.Linear(num_features, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 1),
    )
