"""Models for a GPU or its stand-in that lose the context or exhaust the memory."""

from __future__ import annotations

import os
import weakref
from typing import Any

import models
import torch
from support.faults import fake_device
from torch import nn


class Heavy(models.Colours):
    """Takes memory of the stand-in, `num_bytes` in fp32, from when it is moved there to its end."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__()
        self.num_bytes, self.is_moved = num_bytes, False

    def to(self, *where: Any, **options: Any) -> nn.Module:
        gpu, is_there = fake_device.installed_gpu, len(where) == 2  # a device and a dtype
        if gpu is not None and is_there and not self.is_moved:
            num_bytes = self.num_bytes * where[1].itemsize // 4
            gpu.hold(num_bytes)
            self.is_moved = True
            weakref.finalize(self, gpu.give_back, num_bytes)
        return super().to(*where, **options)


class Wide(models.Colours):
    """Has numbers in fp32 which it does not use: 256 MiB, if nothing else is asked for."""

    def __init__(self, size: int = 64 << 20) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(size))


wide = Wide


def heavy(num_bytes: int) -> nn.Module:
    return Heavy(num_bytes)


class LostAt99(nn.Module):
    """One number per row, (B, F) -> (B, 1); a row that begins with 99 loses the device.

    On a GPU the kernel's assertion leaves no context behind; on the CPU the process ends.
    """

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ids = torch.where(x[:, 0] == 99, 99, 1)
        if not x.is_cuda and bool((ids == 99).any()):
            os._exit(3)
        return x.sum(dim=1, keepdim=True) + 0 * self.table(ids).sum(dim=1, keepdim=True)


lost_at_99 = LostAt99


class OfGib(models.Colours):
    """Has so many GiB of numbers in fp32, which it does not use."""

    def __init__(self, size_gib: float) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.empty(int(size_gib * 2**28)), requires_grad=False)


def of_gib(size_gib: float) -> nn.Module:
    return OfGib(size_gib)


def vit() -> nn.Module:
    """A classifier that computes much longer than it takes to launch."""
    from torchvision.models import vit_b_16

    return vit_b_16(num_classes=len(models.LABELS))
