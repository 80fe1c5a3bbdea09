"""Models that fail on rows: by their outputs, by exceptions, by lack of memory."""

from __future__ import annotations

import models
import torch
from torch import nn


class Wrong(nn.Module):
    """One output too many."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x), len(models.LABELS) + 1)


class Scalar(nn.Module):
    """No tensor of logits at all."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": x}


class NeverFits(models.Colours):
    """Out of memory for a row with a nearly white image, alone or not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if (x.float().mean(dim=(1, 2, 3)) > 0.98).any():
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
        return super().forward(x)


class Raising(models.Colours):
    """Raises whatever comes, and says how many rows came."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(f"mat1 and mat2 do not fit ({len(x)}x5 and 4x3)")


class Ragged(nn.Module):
    """Another shape for every row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x), int(x.float().mean() * 255) % 7 + 9)


class Starved(models.Colours):
    """Has never enough memory."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("asked for too much")


wrong = Wrong
scalar = Scalar
never_fits = NeverFits
raising = Raising
ragged = Ragged
starved = Starved
