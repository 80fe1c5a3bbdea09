"""Features of made-up rows, over which a model is tried before it is used."""

from __future__ import annotations

import torch

from pipeline.preprocessing.model_input import BatchLimits, Input


def drawn_features(seen: Input, num_rows: int) -> tuple[str, torch.Tensor]:
    """Return the only tensor of an input without tokens: its name, and float32 (N, ...).

    Args:
        seen: What the model sees of a row.
        num_rows: N.
    """
    [(name, slot)] = seen.slots(BatchLimits(1)).items()
    one = torch.ones((1, *slot.shape[1:]), dtype=getattr(torch, slot.dtype))
    [prepared] = seen.normaliser(torch.float32)(one)
    drawn = torch.Generator().manual_seed(0)
    return name, torch.randn((num_rows, *prepared.shape[1:]), generator=drawn)
