"""Photos of 6 to 18 megapixels, as cameras make them: seeded crops of the bundled ones, enlarged.

Enlarging adds no fine detail, so such a JPEG would be far smaller than a camera's and decode too
fast: seeded grain goes on top, which makes it a quarter of a byte a pixel. JPEG, quality 90. The
same seed gives the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from support.inputs.photos import load_bases

MEGAPIXELS = (6.0, 18.0)
SHAPES = (4 / 3, 3 / 2, 3 / 4, 2 / 3)
QUALITY = 90
_GRAIN_PX = 1024
_GRAIN_SIGMA = 5.0


def build_large(folder: Path, num_photos: int, seed: int) -> None:
    """Write photos below a folder, one file each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in large_photos(num_photos, seed):
        (folder / name).write_bytes(data)


def large_photos(num_photos: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield the file name and the JPEG of each photo, which depends on seed and place only."""
    bases = list(load_bases().items())
    noise = np.random.default_rng(seed).normal(0, _GRAIN_SIGMA, (_GRAIN_PX, _GRAIN_PX, 1))
    grain = noise.round().astype(np.int16)
    for index in range(num_photos):
        name, base = bases[index % len(bases)]
        rng = np.random.default_rng([seed, index])
        image = _with_grain(_enlarged(base, rng), grain, rng)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=QUALITY)
        yield f"{name}-{index:04d}.jpg", buffer.getvalue()


def _enlarged(base: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cut out 60 to 100 % of what fits a camera's shape; scale it to a seeded number of pixels."""
    ratio = float(rng.choice(SHAPES))
    width = min(base.width, base.height * ratio) * rng.uniform(0.6, 1.0)
    height = width / ratio
    left, top = rng.uniform(0, base.width - width), rng.uniform(0, base.height - height)
    pixels = rng.uniform(*MEGAPIXELS) * 1e6
    size = (round((pixels * ratio) ** 0.5), round((pixels / ratio) ** 0.5))
    box = (left, top, left + width, top + height)
    return base.resize(size, Image.Resampling.BICUBIC, box=box)


def _with_grain(
    image: Image.Image, grain: npt.NDArray[Any], rng: np.random.Generator
) -> Image.Image:
    pixels = np.asarray(image).astype(np.int16)
    shifted = np.roll(grain, tuple(rng.integers(0, _GRAIN_PX, 2)), axis=(0, 1))
    for top in range(0, pixels.shape[0], _GRAIN_PX):
        for left in range(0, pixels.shape[1], _GRAIN_PX):
            tile = pixels[top : top + _GRAIN_PX, left : left + _GRAIN_PX]
            tile += shifted[: tile.shape[0], : tile.shape[1]]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
