"""Resize a decoded image, and crop or pad it to the size of the model input; uint8 in and out.

The pixels equal those of torchvision's v2 transforms, bit for bit: `Resize` with antialiasing, then
`CenterCrop` or `Pad`; lanczos is Pillow's. torchvision itself is not used: importing it takes 1.4 s
and 84 MiB per worker, and its `resize` takes 10% longer for photos of 500 x 375.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import numpy as np

from pipeline.core.failures import Reason
from pipeline.preprocessing.images.geometry import Placement, made_px, placement
from pipeline.preprocessing.images.transform import MAX_ASPECT_RATIO, TransformSpec, Untransformable

if TYPE_CHECKING:
    import torch

PLAIN = "-plain"
"""Ends the names of filters without antialiasing, as OpenCV's are."""


def resize_and_crop(
    image: torch.Tensor, spec: TransformSpec, max_px: int | None = None
) -> torch.Tensor:
    """Resize an image to the model's size, and crop its centre or pad it.

    Args:
        image: RGB uint8 (3, H, W).
        spec: Sizes, filter and channels.
        max_px: The most pixels of the resized image and of the result; None: any number.

    Returns:
        uint8 (C, H, W); if nothing is padded, a view of the resized image.

    Raises:
        Untransformable: One side is more than MAX_ASPECT_RATIO times the other, the result would
            have too many pixels, memory ran out, or torch refused this shape.
    """
    height_px, width_px = int(image.shape[-2]), int(image.shape[-1])
    if max(height_px, width_px) > MAX_ASPECT_RATIO * min(height_px, width_px):
        raise Untransformable(
            Reason.TOO_LARGE,
            f"the image of {width_px} x {height_px} px is too long to resize, one side may be at "
            f"most {MAX_ASPECT_RATIO} times the other",
        )
    if max_px is not None and (num_px := made_px(spec, width_px, height_px)) > max_px:
        raise Untransformable(
            Reason.TOO_LARGE,
            f"the image of {width_px} x {height_px} px would be resized to {num_px} px, allowed "
            f"are {max_px} (source.max_image_px)",
        )
    try:
        place = placement(spec, width_px, height_px)
        if spec.channels == "gray":
            image = to_gray(image)
        elif spec.channels == "bgr":
            image = image.flip(0)
        return _put(_resize(image, (place.height_px, place.width_px), spec), place, spec)
    except (MemoryError, RuntimeError) as error:
        # torch has no error class for lack of CPU memory, and fails at degenerate sizes.
        is_memory = isinstance(error, MemoryError) or "allocate memory" in str(error)
        raise Untransformable(
            Reason.OUT_OF_MEMORY if is_memory else Reason.DECODE_ERROR,
            f"resizing the image of {width_px} x {height_px} px failed: {error}",
        ) from error


def to_gray(image: torch.Tensor) -> torch.Tensor:
    """Turn RGB uint8 (3, H, W) into gray uint8 (1, H, W), as Pillow's `convert("L")`."""
    import torch
    from PIL import Image

    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    return torch.from_numpy(np.array(Image.fromarray(pixels).convert("L")))[None]


def _put(resized: torch.Tensor, place: Placement, spec: TransformSpec) -> torch.Tensor:
    """Crop the centre of a resized image, or pad it."""
    import torch

    if spec.size_px is None:
        return resized
    top, left = max(0, -place.top_px), max(0, -place.left_px)
    window = resized[:, top : top + spec.height_px, left : left + spec.width_px]
    if window.shape[-2:] == (spec.height_px, spec.width_px):
        return window
    values = spec.pad_value if isinstance(spec.pad_value, tuple) else (spec.pad_value,)
    fill = torch.tensor(values, dtype=torch.uint8)
    out = fill.expand(*spec.shape[:2], spec.num_channels).clone().permute(2, 0, 1)
    top, left = max(0, place.top_px), max(0, place.left_px)
    out[:, top : top + window.shape[-2], left : left + window.shape[-1]] = window
    return out


def _resize(image: torch.Tensor, wanted: tuple[int, int], spec: TransformSpec) -> torch.Tensor:
    """Resize to (height, width) as torchvision."""
    import torch

    if wanted == (int(image.shape[-2]), int(image.shape[-1])):
        return image
    if spec.interpolation == "lanczos":
        return _lanczos(image, wanted)
    batch = image[None]
    if batch.is_contiguous(memory_format=torch.channels_last):
        # Only with this batch stride does torch keep the layout without a copy.
        batch = batch.as_strided(batch.shape, (image.numel(), *image.stride()))
    if spec.interpolation in ("nearest", "nearest-exact"):
        return torch.nn.functional.interpolate(batch, size=wanted, mode=spec.interpolation)[0]
    is_native = spec.interpolation == "bicubic" or _resizes_uint8()
    resized = torch.nn.functional.interpolate(
        batch if is_native else batch.float(),
        size=wanted,
        mode=str(spec.interpolation).removesuffix(PLAIN),
        align_corners=False,
        antialias=not str(spec.interpolation).endswith(PLAIN),
    )[0]
    return resized if is_native else to_bytes(resized)


def _lanczos(image: torch.Tensor, wanted: tuple[int, int]) -> torch.Tensor:
    import torch
    from PIL import Image

    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    picture = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    resized = np.array(picture.resize(wanted[::-1], Image.Resampling.LANCZOS))
    return torch.from_numpy(resized.reshape(*wanted, -1)).permute(2, 0, 1)


def to_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """Round float32 pixels to uint8, in place first; bicubic overshoots at edges."""
    import torch

    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def _resizes_uint8() -> bool:
    """Tell whether torch has a bilinear filter for bytes on this CPU."""
    import torch

    is_arm = platform.machine() in ("aarch64", "arm64")
    return is_arm or torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
