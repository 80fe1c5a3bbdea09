"""Decode an encoded image: bytes become RGB uint8 (3, H, W), or a reason.

The pixels are Pillow's: first frame, EXIF orientation applied, `convert("RGB")`. torchvision
decodes JPEG: bit-equal to Pillow for grey, YCbCr, RGB, CMYK and YCCK, faster (1.2 times at
500 x 375, 3 times at six megapixels), and stricter: it requires the end marker, while Pillow
accepts some zero-filled files. Pillow decodes all other formats; torchvision's PNG decoder is 1.3
times faster but has aborted whole processes on malformed files.

The JPEG decoder may scale large images itself (`shrink`), which skips most of the work: libjpeg
reconstructs 4 x 4, 2 x 2 or 1 x 1 pixels of each block of 8 x 8 from its low frequencies.

The header is checked before anything is decoded, and Pillow opens only the format of the magic
bytes. Differences from plain Pillow:

- 9- to 16-bit grey PNG and TIFF: the highest eight bits are kept, as Pillow itself does for 16-bit
  RGB. Its own conversion of 16-bit grey clips, which turns nearly everything white.
- 32-bit integers and floats in TIFF are refused: the value of white is unknown.
- PNG checksums are verified: Pillow ignores those of the pixel data and returns wrong pixels.
- A TIFF, AVIF or HEIC that ends too early is refused before it is decoded (`image_checks`).

Not detected, as in Pillow: damage to WebP, GIF, BMP, TIFF, AVIF or HEIC that keeps the file's
length (they have no checksums); damage inside a JPEG's entropy-coded data if its end marker is
there (both decoders only warn); a PNG whose intact data hold fewer rows than its header says.
"""

from __future__ import annotations

import functools
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

# The import registers the plugin; otherwise the first WebP makes Pillow import all plugins.
from PIL import Image, WebPImagePlugin  # noqa: F401

from pipeline.core.failures import Reason
from pipeline.preprocessing.images.image_checks import (
    BITS,
    PHOTOMETRIC,
    TURNS,
    WHITE_IS_ZERO,
    DecodeLimits,
    Undecodable,
    check_container,
    check_px,
    explain,
    identified,
    orientation_of,
    read_tiff,
)

RGB = 3
"""`torchvision.io.ImageReadMode.RGB`"""


Shrink = Callable[[int, int], int]
"""Width and height of an upright JPEG -> the divisor that the decoder may use: 1, 2, 4 or 8."""


class Decoded(NamedTuple):
    """A decoded image and its size, upright."""

    pixels: torch.Tensor
    """RGB uint8 (3, H, W), in memory (H, W, 3)."""
    size_px: tuple[int, int]
    """Width and height of the image; larger than the pixels' if the decoder has shrunk it."""

    @property
    def decoded_px(self) -> tuple[int, int]:
        """Width and height of the pixels."""
        return _size_of(self.pixels)


def decode_image(data: bytes, limits: DecodeLimits, shrink: Shrink | None = None) -> torch.Tensor:
    """Return the pixels of `decode_sized`."""
    return decode_sized(data, limits, shrink).pixels


def decode_sized(data: bytes, limits: DecodeLimits, shrink: Shrink | None = None) -> Decoded:
    """Decode an image.

    Args:
        data: The encoded image.
        limits: Size limits, checked before decoding.
        shrink: Let the JPEG decoder scale the image; None keeps every pixel.

    Raises:
        Undecodable: The bytes are not a whole image of an accepted format within the limits.
    """
    format_name = identified(data, limits)
    try:
        return _decode(format_name, data, limits, shrink)
    except Undecodable:
        raise
    except Exception as error:
        raise explain(error, format_name, data) from error


def _decode(format_name: str, data: bytes, limits: DecodeLimits, shrink: Shrink | None) -> Decoded:
    check_container(format_name, data, limits)
    # Lazy: reads the header only.
    with Image.open(io.BytesIO(data), formats=(format_name,)) as image:
        check_px(*image.size, limits)
        if format_name == "JPEG":
            orientation = orientation_of(image)
            is_turned = orientation in TURNS and TURNS[orientation][0]
            size_px = image.size[::-1] if is_turned else image.size
            scale = shrink(*size_px) if shrink else 1
            # Pillow converts a CMYK draft in a different way from torchvision.
            if scale > 1 and image.mode in ("RGB", "L"):
                image.draft(image.mode, (image.width // scale, image.height // scale))
                image.load()
                return Decoded(_upright(_to_rgb(image), orientation), size_px)
            return _whole(_upright(_decode_jpeg(data), orientation))
        if format_name == "PNG":
            image.verify()
    # verify() leaves the image unusable; opening it again is cheap.
    with Image.open(io.BytesIO(data), formats=(format_name,)) as image:
        image.load()
        pixels = _tiff_to_rgb(image, data) if format_name == "TIFF" else _to_rgb(image)
        return _whole(_upright(pixels, orientation_of(image)))


def _whole(pixels: torch.Tensor) -> Decoded:
    return Decoded(pixels, _size_of(pixels))


def _size_of(pixels: torch.Tensor) -> tuple[int, int]:
    """Return width and height."""
    return int(pixels.shape[-1]), int(pixels.shape[-2])


def _decode_jpeg(data: bytes) -> torch.Tensor:
    # torch warns about read-only memory; copying the encoded bytes costs 1 % of decoding them.
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return _jpeg_decoder()(encoded, RGB)


@functools.cache
def _jpeg_decoder() -> Callable[[torch.Tensor, int], torch.Tensor]:
    _load_image_ops()
    decoder: Callable[[torch.Tensor, int], torch.Tensor] = torch.ops.image.decode_jpeg
    return decoder


def _load_image_ops() -> None:
    """Load only torchvision's decoders: importing torchvision takes 1.4 s and 84 MiB per worker."""
    spec = importlib.util.find_spec("torchvision")
    folders = spec.submodule_search_locations if spec else None
    libraries = [path for folder in folders or [] for path in Path(folder).glob("image*.so")]
    try:
        torch.ops.load_library(str(libraries[0]))  # type: ignore[no-untyped-call]
    except (IndexError, OSError):  # another file layout
        import torchvision.io  # noqa: F401


def _to_rgb(image: Image.Image) -> torch.Tensor:
    """Convert a loaded image to RGB as Pillow does, 16-bit grey by its high byte."""
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        rgb = np.repeat(grey[:, :, None], 3, axis=2)
    else:
        rgb = np.array(image.convert("RGB"))
    return torch.from_numpy(rgb).permute(2, 0, 1)


def _tiff_to_rgb(image: Image.Image, data: bytes) -> torch.Tensor:
    """Convert the loaded first page of a TIFF."""
    if image.mode in ("I", "F"):
        raise Undecodable(
            Reason.UNSUPPORTED_FORMAT,
            "TIFF of 32-bit or signed numbers, whose value of white is unknown; convert it to 8 or "
            "16 bits",
        )
    if not image.mode.startswith("I;16"):
        return _to_rgb(image)
    page = read_tiff(data)
    grey = (np.asarray(image) >> (page.first(BITS, 16) - 8)).astype(np.uint8)
    if page.first(PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = 255 - grey
    return torch.from_numpy(np.repeat(grey[:, :, None], 3, axis=2)).permute(2, 0, 1)


def _upright(pixels: torch.Tensor, orientation: int) -> torch.Tensor:
    """Apply an EXIF orientation, 1 to 8, to pixels (3, H, W)."""
    if orientation == 1:
        return pixels
    swap, flips = TURNS[orientation]
    turned = torch.flip(pixels.transpose(1, 2) if swap else pixels, flips)
    return turned.permute(1, 2, 0).contiguous().permute(2, 0, 1)
