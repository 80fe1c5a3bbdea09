"""Models that show how errors of a device are met."""

from __future__ import annotations

import os

import torch
from torch import nn

POISON = 99.0
"""The feature of the row that loses its context."""


class Poisoned(nn.Module):
    """One number per row, (B, F) -> (B, 1); a row that begins with POISON loses the device.

    On a GPU the kernel's assertion leaves no context behind; on the CPU the process ends.
    """

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ids = torch.where(x[:, 0] == POISON, 99, 1)
        if not x.is_cuda and bool((ids == 99).any()):
            os._exit(3)
        return x.sum(dim=1, keepdim=True) + 0 * self.table(ids).sum(dim=1, keepdim=True)


class Large(nn.Module):
    """Parameters of so many GiB."""

    def __init__(self, size_gib: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(int(size_gib * 2**28)), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(dim=1, keepdim=True) + 0 * self.weight[:1]


def poisoned() -> nn.Module:
    return Poisoned()


def large(size_gib: float) -> nn.Module:
    return Large(size_gib)
