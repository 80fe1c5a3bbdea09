"""Checks of an encoded image before it is decoded, and reasons of decoders that fail; no torch.

For most formats the header that Pillow reads is enough. TIFF decoders fill missing strips, take the
size of a tile from the file, and know dozens of layouts; AVIF and HEIC may name images that are not
in the file. These are therefore checked for completeness and size here.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from pipeline.core.failures import Reason, RowError
from pipeline.core.media import FORMATS, accepted_images, boxes, media_format, refused_image
from pipeline.preprocessing.images.transform import MAX_ASPECT_RATIO

Numbers = npt.NDArray[np.uint64]

# Tags of TIFF.
SUBFILE_TYPE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_STRIP_OFFSETS, _SAMPLES, _STRIP_ROWS, _STRIP_BYTES, _PLANES = 273, 277, 278, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES, _DNG_VERSION = 322, 323, 324, 325, 50706
_JPEG_TABLES = 347
_CFA = 32803
WHITE_IS_ZERO = 0
_TYPES = {1: "u1", 3: "u2", 4: "u4", 7: "u1", 16: "u8"}
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


class Undecodable(RowError):
    """These bytes cannot be decoded as an image."""


def not_accepted(data: bytes) -> Undecodable:
    """Return the error for data of a format that is not accepted, with its name if known."""
    if name := refused_image(data):
        reason, what = Reason.UNSUPPORTED_FORMAT, f"the image is {name}"
    else:
        reason, what = Reason.UNIDENTIFIED, f"the bytes begin with {data[:8].hex(' ')}"
    return Undecodable(reason, f"{what}; accepted are {accepted_images()}")


def prepare_decoder(format_name: str) -> None:
    """Register an optional decoder with Pillow.

    Raises:
        Undecodable: The decoder is not installed.
    """
    missing = _load_decoder(format_name)
    if missing:
        raise Undecodable(Reason.UNSUPPORTED_FORMAT, missing)


@functools.cache
def _load_decoder(format_name: str) -> str:
    """Load a decoder on its first use; return what is missing, or ''."""
    if format_name == "PNG":  # one text chunk may be as long as all of them together
        texts: Any = importlib.import_module("PIL.PngImagePlugin")
        texts.MAX_TEXT_CHUNK = texts.MAX_TEXT_MEMORY
    if format_name == "HEIF":
        try:
            plugin = importlib.import_module("pillow_heif")
        except ImportError:
            return (
                "the image is HEIC, whose decoder is not installed: "
                "pip install 'batch-inference-pipeline[heif]', then pipeline retry"
            )
        # One thread per row, as for all decoders; only the primary image is read.
        plugin.register_heif_opener(
            decode_threads=1, thumbnails=False, depth_images=False, aux_images=False
        )
    if format_name == "AVIF":
        from PIL import AvifImagePlugin

        if not AvifImagePlugin.SUPPORTED:
            return "the image is AVIF, which this Pillow was built without"
        AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    if format_name == "TIFF":
        importlib.import_module("PIL.TiffImagePlugin")
    return ""


@dataclass(frozen=True)
class DecodeLimits:
    """Limits of an image's size, checked by its bytes and header before it is decoded.

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
    """Load the decoder, and check that a TIFF, AVIF or HEIC is complete, as decoders do not.

    Raises:
        Undecodable: The file is incomplete, or the decoder is not installed.
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
        # Many rows are costly to decode, and the transform would refuse the image anyway.
        raise Undecodable(
            Reason.TOO_LARGE,
            f"the header says {width_px} x {height_px} px, which is too long to resize: one side "
            f"may be at most {MAX_ASPECT_RATIO} times the other",
        )


def orientation_of(image: Image.Image) -> int:
    """Return the orientation from EXIF or XMP, 1 to 8; 1 (upright) if it cannot be read.

    Broken metadata with good pixels is common, and viewers show such images unrotated.
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


def check_boxes(data: bytes) -> None:
    """Refuse an AVIF or HEIC that ends within a box of the image.

    Raises:
        Undecodable: A box is incomplete.
    """
    for name, start, end in boxes(data):
        if end > len(data) and name in (b"ftyp", b"meta", b"mdat", b"moov"):
            raise Undecodable(
                Reason.TRUNCATED,
                f"{len(data)} bytes, but the box {name.decode()} goes from {start} to {end}",
            )


@dataclass(frozen=True)
class TiffPage:
    """Numbers of the first page by tag."""

    tags: Mapping[int, Numbers]

    def first(self, tag: int, default: int = 0) -> int:
        """Return the first number of a tag."""
        numbers = self.tags.get(tag)
        return default if numbers is None or not len(numbers) else int(numbers[0])


def read_tiff(data: bytes) -> TiffPage:
    """Read the tags of a TIFF's first page: layout and position of its pixels.

    Raises:
        Undecodable: The tags are beyond the end of the data.
    """
    order = "<" if data.startswith(b"II") else ">"
    is_big = data[2:4] in (b"+\0", b"\0+")
    word, half, step = ("u8", "u8", 20) if is_big else ("u4", "u2", 12)
    at = int(_numbers(data, 8 if is_big else 4, order + word, 1)[0])
    count = int(_numbers(data, at, order + half, 1)[0])
    at += int(half[1])
    tags: dict[int, Numbers] = {}
    for place in range(at, at + count * step, step):
        tag, type_code = (int(n) for n in _numbers(data, place, f"{order}u2", 2))
        if type_code not in _TYPES or tag not in _WANTED or tag in tags:
            continue
        number = int(_numbers(data, place + 4, order + word, 1)[0])
        value = place + 4 + int(word[1])
        if number * int(_TYPES[type_code][1]) > int(word[1]):
            value = int(_numbers(data, value, order + word, 1)[0])
        tags[tag] = _numbers(data, value, order + _TYPES[type_code], number)
    return TiffPage(tags)


_WANTED = frozenset(
    [
        *(SUBFILE_TYPE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, _SAMPLES, _PLANES),
        *(_STRIP_OFFSETS, _STRIP_ROWS, _STRIP_BYTES, _DNG_VERSION, _JPEG_TABLES),
        *(_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES),
    ]
)


def _numbers(data: bytes, at: int, dtype: str, count: int) -> Numbers:
    if at + count * int(dtype[2]) > len(data):
        raise Undecodable(
            Reason.TRUNCATED, f"TIFF of {len(data)} bytes: its directory refers to {at} and beyond"
        )
    return np.frombuffer(data, dtype, count, at).astype(np.uint64)


def check_tiff(data: bytes, max_px: int) -> None:
    """Refuse a TIFF whose first page is incomplete, or would unpack to more than its pixels.

    Raises:
        Undecodable: It is refused.
    """
    page = read_tiff(data)
    if _DNG_VERSION in page.tags or page.first(PHOTOMETRIC) == _CFA or data[8:10] == b"CR":
        raise Undecodable(
            Reason.UNSUPPORTED_FORMAT, f"the image is camera raw; accepted are {accepted_images()}"
        )
    if page.first(SUBFILE_TYPE) & 1:
        raise Undecodable(
            Reason.UNSUPPORTED_FORMAT, "TIFF: its first page is a smaller copy of another page"
        )
    width_px, height_px = page.first(WIDTH), page.first(HEIGHT)
    if not width_px or not height_px:
        raise Undecodable(Reason.DECODE_ERROR, "TIFF: its first page has no pixels")
    planes = page.first(_SAMPLES, 1) if page.first(_PLANES, 1) == 2 else 1
    is_tiled = _TILE_OFFSETS in page.tags
    if is_tiled and _STRIP_OFFSETS in page.tags:
        raise Undecodable(Reason.DECODE_ERROR, "TIFF: its first page has strips and tiles")
    if is_tiled:
        tile_px = page.first(_TILE_WIDTH), page.first(_TILE_HEIGHT)
        if 0 in tile_px or tile_px[0] * tile_px[1] > max_px:
            raise Undecodable(
                Reason.TOO_LARGE,
                f"TIFF: its tiles are {tile_px[0]} x {tile_px[1]} px, allowed are {max_px} px",
            )
        pieces = -(-width_px // tile_px[0]) * -(-height_px // tile_px[1])
    else:
        pieces = -(-height_px // min(page.first(_STRIP_ROWS, height_px) or 1, height_px))
    _check_pieces(data, page, pieces * planes, is_tiled=is_tiled)


def _check_pieces(data: bytes, page: TiffPage, wanted: int, *, is_tiled: bool) -> None:
    """Check that the data contain the expected number of strips or tiles."""
    names = (_TILE_OFFSETS, _TILE_BYTES) if is_tiled else (_STRIP_OFFSETS, _STRIP_BYTES)
    offsets, sizes = (page.tags.get(name, np.zeros(0, np.uint64)) for name in names)
    is_endless = len(offsets) > 4 * wanted + 16  # Pillow turns all of them into Python integers
    offsets, sizes = offsets[:wanted], sizes[:wanted]
    if is_endless or len(offsets) < wanted or len(sizes) < wanted or not sizes.all():
        raise Undecodable(
            Reason.DECODE_ERROR,
            f"TIFF: {int(np.count_nonzero(sizes))} strips or tiles hold pixels, not {wanted}",
        )
    ends = offsets.astype(np.float64) + sizes.astype(np.float64)
    if ends.max() > len(data):
        raise Undecodable(
            Reason.TRUNCATED, f"TIFF of {len(data)} bytes: its pixels go on to {ends.max():.0f}"
        )
