"""A model that hangs in C while a file exists, holding the GIL."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path

import torch
from models import Colours
from torch import nn

_STAGED = "out/_control/*/staging/*/*.parquet"


class Stuck(Colours):
    """Hangs once a slice is staged beside the file that tells it to, which TEST_STUCK names."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        trigger = os.environ.get("TEST_STUCK")
        if trigger and os.path.exists(trigger) and any(Path(trigger).parent.glob(_STAGED)):
            with open(f"{trigger}.now", "w"):
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
