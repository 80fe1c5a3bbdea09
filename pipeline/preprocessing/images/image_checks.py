"""Checks of an encoded image before and after it is decoded, without torch.

In: bytes of a row. Out: `Undecodable` with its reason, for what is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from pipeline.core.failures import Reason
from pipeline.core.media import FORMATS, media_format
from pipeline.preprocessing.images.image_formats import (
    Undecodable,
    check_boxes,
    check_tiff,
    not_accepted,
    prepare_decoder,
)
from pipeline.preprocessing.images.transform import MAX_ASPECT_RATIO

_EXIF_ORIENTATION = 0x0112
# Orientation -> (swap height and width first, then flip these dimensions of (3, H, W)).
TURNS: dict[int, tuple[bool, tuple[int, ...]]] = {
    2: (False, (2,)),
    3: (False, (1, 2)),
    4: (False, (1,)),
    5: (True, ()),
    6: (True, (2,)),
    7: (True, (1, 2)),
    8: (True, (1,)),
}
_CUT_WORDS = ("truncated", "incomplete")
_MEMORY_WORDS = ("out of memory", "allocate memory", "enough memory", "insufficient memory")
_SOURCE_LINE = re.compile(r"^.*\.cpp:\d+, ")


@dataclass(frozen=True)
class DecodeLimits:
    """Limits that refuse an image by its size or header, before it is decoded.

    Pillow's own limit against decompression bombs stays in force: an image of more than twice
    `PIL.Image.MAX_IMAGE_PIXELS` (178,956,970 px) is refused even if `max_image_px` is higher.
    """

    max_image_bytes: int
    max_image_px: int


def identified(data: bytes, limits: DecodeLimits) -> str:
    """Return Pillow's name of the format of an image.

    Raises:
        Undecodable: It is empty, too large, or of no accepted format.
    """
    if not data:
        raise Undecodable(Reason.EMPTY, "the image has 0 bytes")
    if len(data) > limits.max_image_bytes:
        raise Undecodable(
            Reason.TOO_LARGE,
            f"the image has {len(data)} bytes, allowed are {limits.max_image_bytes}",
        )
    if (row := media_format("image", data)) is None:
        raise not_accepted(data)
    return row.reader_names[0]


def check_container(format_name: str, data: bytes, limits: DecodeLimits) -> None:
    """Make a decoder ready, and check what it would not: is a TIFF, AVIF or HEIC whole?

    Raises:
        Undecodable: It is not, or the decoder is not installed.
    """
    prepare_decoder(format_name)
    if format_name == "TIFF":
        check_tiff(data, limits.max_image_px)
    if format_name in ("AVIF", "HEIF"):
        check_boxes(data)


def check_px(width_px: int, height_px: int, limits: DecodeLimits) -> None:
    if width_px * height_px > limits.max_image_px:
        raise Undecodable(
            Reason.TOO_LARGE,
            f"the header says {width_px} x {height_px} = {width_px * height_px} px, "
            f"allowed are {limits.max_image_px}",
        )
    if max(width_px, height_px) > MAX_ASPECT_RATIO * min(width_px, height_px) > 0:
        # Rows of pixels cost a decoder more than their pixels; `transform` would refuse it anyway.
        raise Undecodable(
            Reason.TOO_LARGE,
            f"the header says {width_px} x {height_px} px, which is too long to resize: one side "
            f"may be at most {MAX_ASPECT_RATIO} times the other",
        )


def orientation_of(image: Image.Image) -> int:
    """Return the orientation from EXIF or XMP, 1 to 8; 1 (upright) if it cannot be read.

    Broken metadata beside good pixels is common, and viewers show such images as stored.
    """
    try:
        value = image.getexif().get(_EXIF_ORIENTATION)
        return int(value) if value in TURNS else 1
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - parsing malformed EXIF raises anything
        return 1


def explain(error: Exception, format_name: str, data: bytes) -> Undecodable:
    """Turn an error of a decoder into a reason and a message of one line."""
    if isinstance(error, UnidentifiedImageError):  # its own text holds a memory address
        text = "the header cannot be read"
    else:
        lines = str(error).splitlines() or [""]
        text = _SOURCE_LINE.sub("", lines[0]) or type(error).__name__
    lowered = text.lower()
    if isinstance(error, MemoryError) or any(word in lowered for word in _MEMORY_WORDS):
        reason = Reason.OUT_OF_MEMORY
    elif isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        reason = Reason.TOO_LARGE
    elif any(word in lowered for word in _CUT_WORDS) or _is_cut(format_name, data):
        reason = Reason.TRUNCATED
    else:
        reason = Reason.DECODE_ERROR
    return Undecodable(reason, f"{format_name} of {len(data)} bytes: {text}")


def _is_cut(format_name: str, data: bytes) -> bool:
    return any(row.is_cut(data) for row in FORMATS if format_name in row.reader_names)
