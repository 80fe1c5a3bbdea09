"""A model that hangs in C while a file is there, holding the GIL so that nothing of Python runs."""

from __future__ import annotations

import ctypes
import os
import time

import torch
from models import Colours
from torch import nn


class Stuck(Colours):
    """Answers the first call of its process, and hangs in the second if told to."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        told = os.environ.get("TEST_STUCK")
        if told and os.path.exists(told) and self.calls > 1:
            with open(f"{told}.now", "w"):
                ctypes.PyDLL(None).sleep(100_000)
        return super().forward(x)


class Slow(Colours):
    """Takes a second for every batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(1.0)
        return super().forward(x)


def stuck() -> nn.Module:
    return Stuck()


def slow() -> nn.Module:
    return Slow()
