"""Modules that normalise model input on the device, before the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class NormaliseImages(torch.nn.Module):
    """uint8 (B, H, W, C) -> (B, C, H, W) in the model's dtype, channels last in memory."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> None:
        """Take the means and standard deviations per channel, in [0, 1], and the model's dtype."""
        super().__init__()
        self._dtype = dtype
        shift, scale = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
        # /255, mean and std become x * scale + shift, in float32 for every dtype of the model.
        self.register_buffer("scale", 1.0 / (255.0 * scale), persistent=False)
        self.register_buffer("shift", -shift / scale, persistent=False)

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor]:
        """Return the normalised images."""
        # NHWC memory viewed as NCHW is channels_last already: no copy.
        x = batch.permute(0, 3, 1, 2).to(torch.float32)
        shift, scale = self.get_buffer("shift"), self.get_buffer("scale")
        return (torch.addcmul(shift, x, scale).to(self._dtype),)


class NormaliseSeveral(torch.nn.Module):
    """The tensors of several inputs in order, each normalised by its input's module."""

    def __init__(self, parts: Sequence[torch.nn.Module], counts: Sequence[int]) -> None:
        """Take each input's module, and its number of tensors."""
        super().__init__()
        self.parts = torch.nn.ModuleList(parts)
        self._counts = tuple(counts)

    def forward(self, *batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the tensors for the model, in the same order."""
        tensors: list[torch.Tensor] = []
        first = 0
        for part, count in zip(self.parts, self._counts, strict=True):
            tensors += part(*batch[first : first + count])
            first += count
        return tuple(tensors)


class Unchanged(torch.nn.Module):
    """Tensors of any shape and dtype, unchanged."""

    def forward(self, *batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the tensors."""
        return batch


class Cast(torch.nn.Module):
    """Tensors of any shape, cast to the model's dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def forward(self, *batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the tensors in the model's dtype."""
        return tuple(tensor.to(self._dtype) for tensor in batch)
