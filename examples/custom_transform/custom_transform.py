"""A transform of your own: photos of uneven light get even contrast, and none of them is cropped.

The pipeline calls the factory with `transform.args`, once in every process that decodes. What it
returns is called with each decoded image, an RGB uint8 tensor (3, H, W), and returns what the model
sees: uint8 (C, H, W) of `transform.size_px`. Mean and std stay in the job (or the model): they are
applied on the model's device, so ToDtype and Normalize have no place here.
"""

from __future__ import annotations

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

LEVELS = 256
LUMA = (0.299, 0.587, 0.114)
"""What red, green and blue give to the lightness of a pixel (ITU-R 601)."""


class EvenContrast:
    """Contrast-limited histogram equalisation of the lightness; colours keep their hue.

    Source of the limit: Pizer et al., Adaptive Histogram Equalization and Its Variations, 1987;
    here over the whole image instead of tiles.
    """

    def __init__(self, limit: float) -> None:
        """Take the most that a level may hold, as a multiple of the mean: 1 changes nothing."""
        self.limit = limit

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Equalise an image, uint8 (3, H, W)."""
        weights = torch.tensor(LUMA).view(3, 1, 1)
        lightness = (image * weights).sum(0).round().long()
        counts = torch.bincount(lightness.flatten(), minlength=LEVELS).float()
        most = self.limit * counts.mean()
        kept = counts.clamp(max=most)
        kept += (counts - kept).sum() / LEVELS  # what is cut off goes to all levels alike
        levels = (LEVELS - 1) * kept.cumsum(0) / kept.sum()
        scale = levels[lightness] / lightness.clamp(min=1)
        return (image * scale).round().clamp(0, LEVELS - 1).to(torch.uint8)


class Letterbox:
    """Resize the longer side, and fill up around the image, which stays in the centre."""

    def __init__(self, size_px: int, fill: int) -> None:
        """Take the side of the square, and the grey around the image."""
        self.size_px, self.fill = size_px, fill

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Fit an image, uint8 (3, H, W), into (3, size_px, size_px)."""
        height, width = image.shape[-2:]
        ratio = self.size_px / max(height, width)
        size = [max(1, round(height * ratio)), max(1, round(width * ratio))]
        resized = functional.resize(image, size, antialias=True)
        left, top = (self.size_px - size[1]) // 2, (self.size_px - size[0]) // 2
        right, bottom = self.size_px - size[1] - left, self.size_px - size[0] - top
        return functional.pad(resized, [left, top, right, bottom], fill=self.fill)


def even_letterbox(size_px: int, limit: float = 2.0, fill: int = 114) -> v2.Compose:
    """Build the transform: what `transform.factory` in the job file names."""
    return v2.Compose([EvenContrast(limit), Letterbox(size_px, fill)])
