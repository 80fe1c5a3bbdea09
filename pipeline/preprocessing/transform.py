"""Resize and crop one decoded image to the model's input size; uint8 in, uint8 out.

The pixels are those of torchvision's `Resize(resize_px, antialias=True)` and `CenterCrop(size_px)`
on the same tensor, bit for bit. A GPU has no filter for bytes: there the same filter runs in
float32 and rounds. Normalisation is not done here, but on the model's device. The driver reads a
TransformSpec too, so torch is imported only when an image is transformed.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.core.failures import Reason, RowError

if TYPE_CHECKING:
    import torch

INTERPOLATIONS = ("bilinear", "bicubic")
JPEG_DECODERS = ("cpu", "gpu")

# The whole resized image is made before the crop (resampling only the cropped window changes
# pixels), so a strip of 1 x 5000 px at resize_px 256 would take 1 GB for a crop that shows a
# five-thousandth of it. At this ratio it is 10 MB.
MAX_ASPECT_RATIO = 50


class Untransformable(RowError):
    """This image cannot be transformed to model input."""


@dataclass(frozen=True)
class TransformSpec:
    """How a decoded image becomes model input."""

    size_px: int
    """Side of the square centre crop."""
    resize_px: int
    """The shorter side is resized to this before the crop; at least size_px."""
    interpolation: str
    """`bilinear` or `bicubic`, with antialiasing."""
    mean: tuple[float, float, float]
    """Channel means in [0, 1], subtracted on the device."""
    std: tuple[float, float, float]
    """Channel standard deviations in [0, 1], divided by on the device."""
    shrink_on_load: bool = False
    """Let the JPEG decoder halve large photos, down to twice resize_px at least."""
    jpeg_decoder: str = "cpu"
    """`cpu` (libjpeg) or `gpu` (nvJPEG, for plain JPEGs)."""

    def __post_init__(self) -> None:
        if self.size_px < 1:
            raise ValueError(f"size_px is {self.size_px}; it must be at least 1")
        if self.resize_px < self.size_px:
            raise ValueError(
                f"resize_px is {self.resize_px}; it must be at least size_px ({self.size_px}), "
                "or the crop would need padding"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation is {self.interpolation!r}; it must be one of "
                f"{', '.join(INTERPOLATIONS)}"
            )
        if self.jpeg_decoder not in JPEG_DECODERS:
            raise ValueError(
                f"jpeg_decoder is {self.jpeg_decoder!r}; it must be one of "
                f"{', '.join(JPEG_DECODERS)}"
            )
        if len(self.mean) != 3 or len(self.std) != 3:
            raise ValueError("mean and std must have 3 values each, one a channel")
        if min(self.std) <= 0:
            raise ValueError(f"std is {list(self.std)}; its values must be above 0")

    @property
    def decodes_on_gpu(self) -> bool:
        """Tell whether a GPU decodes the plain JPEGs."""
        return self.jpeg_decoder == "gpu"

    @property
    def changes_pixels(self) -> bool:
        """Tell whether pixels may differ from libjpeg's at full size."""
        return self.shrink_on_load or self.decodes_on_gpu

    def exact(self) -> TransformSpec:
        """Return the same transform with libjpeg at full size."""
        return replace(self, shrink_on_load=False, jpeg_decoder="cpu")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; equal specs give equal JSON."""
        return {
            "size_px": self.size_px,
            "resize_px": self.resize_px,
            "interpolation": self.interpolation,
            "mean": [float(value) for value in self.mean],
            "std": [float(value) for value in self.std],
            "shrink_on_load": self.shrink_on_load,
            "jpeg_decoder": self.jpeg_decoder,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TransformSpec:
        """Return the spec that `to_dict` described, also after a round trip through JSON."""
        mean = tuple(float(value) for value in values["mean"])
        std = tuple(float(value) for value in values["std"])
        return cls(**{**values, "mean": mean, "std": std})


def resize_and_crop(image: torch.Tensor, spec: TransformSpec) -> torch.Tensor:
    """Resize the shorter side to resize_px and crop the centre.

    Args:
        image: RGB uint8 (3, H, W), on any device.
        spec: Sizes and filter.

    Returns:
        RGB uint8 (3, S, S) on the same device, a view of the resized image.

    Raises:
        Untransformable: One side is more than MAX_ASPECT_RATIO times the other, memory ran out, or
            torch refused this shape.
    """
    height_px, width_px = int(image.shape[-2]), int(image.shape[-1])
    if max(height_px, width_px) > MAX_ASPECT_RATIO * min(height_px, width_px):
        raise Untransformable(
            Reason.TOO_LARGE,
            f"the image of {width_px} x {height_px} px is too long to resize, one side may be at "
            f"most {MAX_ASPECT_RATIO} times the other",
        )
    try:
        resized = _resize(image, spec)
    except (MemoryError, RuntimeError) as error:
        # torch has no error class for lack of CPU memory, and bugs at degenerate sizes.
        is_memory = isinstance(error, MemoryError) or "allocate memory" in str(error)
        raise Untransformable(
            Reason.OUT_OF_MEMORY if is_memory else Reason.DECODE_ERROR,
            f"resizing the image of {width_px} x {height_px} px failed: {error}",
        ) from error
    top_px = round((resized.shape[-2] - spec.size_px) / 2)
    left_px = round((resized.shape[-1] - spec.size_px) / 2)
    return resized[:, top_px : top_px + spec.size_px, left_px : left_px + spec.size_px]


def _resize(image: torch.Tensor, spec: TransformSpec) -> torch.Tensor:
    """Resize as torchvision's `Resize`, without its import, which takes 1.2 s per worker."""
    import torch

    height_px, width_px = int(image.shape[-2]), int(image.shape[-1])
    long_px = int(spec.resize_px * max(height_px, width_px) / min(height_px, width_px))
    wanted = (long_px, spec.resize_px) if width_px <= height_px else (spec.resize_px, long_px)
    if wanted == (height_px, width_px):
        return image
    batch = image[None]
    if batch.is_contiguous(memory_format=torch.channels_last):
        # torch keeps the layout, and makes no copy, only with this batch stride.
        batch = batch.as_strided(batch.shape, (image.numel(), *image.stride()))
    is_native = image.device.type == "cpu" and (spec.interpolation == "bicubic" or _resizes_uint8())
    resized = torch.nn.functional.interpolate(
        batch if is_native else batch.float(),
        size=wanted,
        mode=spec.interpolation,
        align_corners=False,
        antialias=True,
    )[0]
    return resized if is_native else to_bytes(resized)


def to_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """Round float32 pixels to uint8, in place first; bicubic overshoots at edges."""
    import torch

    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def _resizes_uint8() -> bool:
    """Tell whether torch has a bilinear filter for bytes on this CPU."""
    import torch

    is_arm = platform.machine() in ("aarch64", "arm64")
    return is_arm or torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def resize_and_crop_into(
    image: torch.Tensor, spec: TransformSpec, out: npt.NDArray[np.uint8]
) -> None:
    """Write the result of `resize_and_crop` into `out`, channels last.

    Args:
        image: RGB uint8 (3, H, W).
        spec: Sizes and filter.
        out: Writable uint8 (S, S, 3).
    """
    wanted = (spec.size_px, spec.size_px, 3)
    if out.shape != wanted or out.dtype != np.uint8:
        raise ValueError(f"out is {out.dtype} {out.shape}; it must be uint8 {wanted}")
    np.copyto(out, resize_and_crop(image, spec).permute(1, 2, 0).numpy())
