"""Image transforms that tests name as `transform.factory`; some end their process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torchvision.transforms import v2

SIZE_PX = 32
Image = torch.Tensor
calls: list[dict[str, Any]] = []
"""The arguments of each call of `counted` in this process."""


def composed(size_px: int = SIZE_PX, channels: int = 3) -> v2.Compose:
    """A composition of torchvision: resized, cropped, padded, and gray."""
    return v2.Compose(
        [
            v2.Resize(size_px, antialias=True),
            v2.CenterCrop(size_px - 4),
            v2.Pad(2, fill=9),
            v2.Grayscale(num_output_channels=channels),
        ]
    )


def squeezed(size_px: int = SIZE_PX) -> Callable[[Image], Image]:
    """Both sides resized, as `resize: stretch` does."""
    return v2.Resize([size_px, size_px], antialias=True)


def halved() -> Callable[[Image], Image]:
    """Every other row and column: as many sizes as the images have."""
    return lambda image: image[:, ::2, ::2]


def larger() -> Callable[[Image], Image]:
    """Twice as many rows and columns."""
    return lambda image: image.repeat_interleave(2, 1).repeat_interleave(2, 2)


def four_channels() -> Callable[[Image], Image]:
    """Red, green, blue, and the lightness."""
    resize = squeezed()

    def transform(image: Image) -> Image:
        small = resize(image)
        return torch.cat([small, v2.functional.rgb_to_grayscale(small)])

    return transform


def starved() -> Callable[[Image], Image]:
    """Lacks memory for white images."""
    resize = squeezed()

    def transform(image: Image) -> Image:
        if image.amin() == image.amax() == 255:
            raise MemoryError("asked for too much")
        return resize(image)

    return transform


def refusing() -> Callable[[Image], Image]:
    """Raises for every image."""

    def transform(image: Image) -> Image:
        raise KeyError("no such lens")

    return transform


def fussy() -> Callable[[Image], Image]:
    """Raises for black images."""
    resize = squeezed()

    def transform(image: Image) -> Image:
        if not image.any():
            raise ValueError("nothing to see")
        return resize(image)

    return transform


def returning(fault: str) -> Callable[[Image], Any]:
    """Returns something else than a transform may."""
    wrong: dict[str, Callable[[Image], Any]] = {
        "none": lambda image: None,
        "array": lambda image: image.permute(1, 2, 0).numpy(),
        "pil": v2.functional.to_pil_image,
        "float": v2.Compose([v2.Resize(SIZE_PX), v2.ToDtype(torch.float32, scale=True)]),
        "int64": lambda image: image.long(),
        "batch": lambda image: image[None],
        "plane": lambda image: image[0],
        "last": lambda image: image.permute(1, 2, 0),
        "gray": lambda image: image[:1],
        "empty": lambda image: image[:, :0],
        "small": lambda image: image[:, :5, :7],
    }
    return wrong[fault]


def counted(**args: Any) -> Callable[[Image], Image]:
    """Notes that it was called."""
    calls.append(args)
    return squeezed()


def reused() -> Callable[[Image], Image]:
    """Returns the same memory for every image."""
    out = torch.from_numpy(np.zeros((3, SIZE_PX, SIZE_PX), np.uint8))
    resize = squeezed()
    return lambda image: out.copy_(resize(image))


def no_factory() -> int:
    return 7


def broken() -> Callable[[Image], Image]:
    raise OSError("no licence")


whole = squeezed()
"""A transform itself, not a function that returns one."""
