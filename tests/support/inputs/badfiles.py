"""Image files made from a seed: malformed ones with the reason they must get, and valid odd ones.

Quick to import and to run: see `encoded` for how images are made.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.core.failures import Reason
from support.inputs.brokenfiles import broken_files
from support.inputs.encoded import PNG_MAGIC, base_image, chunk, encode, png, png16, png_strip

MAX_IMAGE_BYTES = 1024 * 1024
"""`too_many_bytes.jpg` is larger than this; every other file is smaller."""
MAX_IMAGE_PX = 100_000_000
"""The bombs and lying headers reach this; every other file is far smaller."""

_JPEG_END = b"\xff\xd9"
_ORIENTATION = 0x0112
_XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description '
    b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></x:xmpmeta>'
)


@dataclass(frozen=True)
class BadFile:
    """A file that must be refused, and why."""

    name: str
    data: bytes
    reason: Reason


@functools.cache
def bad_files(seed: int) -> tuple[BadFile, ...]:
    """Make files that no decoder may turn into a prediction; names are unique."""
    image = base_image(seed)
    groups = [
        *((Reason.EMPTY, {"empty.jpg": b""}), (Reason.UNIDENTIFIED, _not_images(image, seed))),
        *((Reason.TRUNCATED, _cut_files(image)), (Reason.TOO_LARGE, _too_large_files(image))),
        (Reason.DECODE_ERROR, _corrupt_files(image, seed)),
        *broken_files(image),
    ]
    return tuple(BadFile(*file, reason) for reason, files in groups for file in files.items())


def _not_images(image: Image.Image, seed: int) -> dict[str, bytes]:
    return {
        "text.jpg": b"Bring milk and bread, please.\n" * 9,
        "bm_text.bmp": b"BM is how this text begins, and a bitmap as well.\n",
        "html.png": b"<!doctype html><title>404</title><p>Not found</p>\n",
        "zeros.webp": bytes(500),
        "byte_order_mark.jpg": b"\xef\xbb\xbf" + encode(image, "JPEG"),
        "random.gif": b"\x01" + np.random.default_rng(seed).bytes(4000),
    }


def _cut_files(image: Image.Image) -> dict[str, bytes]:
    jpeg = encode(image, "JPEG", quality=90)
    cmyk = encode(image.convert("CMYK"), "JPEG")
    png_bytes, bmp = encode(image, "PNG"), encode(image, "BMP")
    tall = bytearray(bmp)
    tall[22:26] = struct.pack("<i", 2 * image.height)
    return {
        "cut_at_60_pct.cmyk.jpg": cmyk[: len(cmyk) * 60 // 100],
        "header_only.jpg": jpeg[: jpeg.index(b"\xff\xda")],
        "magic_only.jpg": jpeg[:4],
        "magic_only.png": PNG_MAGIC,
        "without_end.jpg": jpeg.removesuffix(_JPEG_END),
        "without_end.png": png_bytes[:-12],
        "zeros_from_60_pct.jpg": _zero_tail(jpeg),
        "zeros_from_60_pct.png": _zero_tail(png_bytes),
        "says_double_height.bmp": bytes(tall),
    }


def _zero_tail(data: bytes) -> bytes:
    """Look like a file whose space was reserved but whose download stopped."""
    kept = len(data) * 60 // 100
    return data[:kept] + bytes(len(data) - kept)


def _too_large_files(image: Image.Image) -> dict[str, bytes]:
    jpeg = bytearray(encode(image, "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
    webp = bytearray(encode(image, "WEBP", lossless=True))
    size_bits = int.from_bytes(webp[21:25], "little") & ~0xFFFFFFF
    webp[21:25] = (size_bits | 16382 | 16382 << 14).to_bytes(4, "little")
    bmp = bytearray(encode(image, "BMP"))
    bmp[18:26] = struct.pack("<ii", 12_000, 10_000)
    return {
        "bomb.png": png_strip(30_000, 30_000),
        "says_65500_px.jpg": bytes(jpeg),
        "says_16383_px.webp": bytes(webp),
        "says_12000_px.bmp": bytes(bmp),
        "too_many_bytes.jpg": encode(image, "JPEG") + bytes(MAX_IMAGE_BYTES),
    }


def _corrupt_files(image: Image.Image, seed: int) -> dict[str, bytes]:
    noise = np.random.default_rng(seed).bytes(4000)
    twelve_bit = bytearray(encode(image, "JPEG"))
    twelve_bit[twelve_bit.index(b"\xff\xc0") + 4] = 12
    odd_depth = bytearray(encode(image, "BMP"))
    odd_depth[28:30] = struct.pack("<H", 7)
    flipped = bytearray(png(image))
    flipped[len(flipped) // 2] ^= 0x10
    return {
        "random_after_magic.jpg": b"\xff\xd8\xff\x37" + noise + _JPEG_END,
        "random_after_magic.png": PNG_MAGIC + noise + chunk(b"IEND", b""),
        "twelve_bit.jpg": bytes(twelve_bit),
        "seven_bit.bmp": bytes(odd_depth),
        "wrong_checksum.png": png(image, crc_error=1),
        "flipped_bit.png": bytes(flipped),
    }


@functools.cache
def good_odd_files(seed: int) -> tuple[tuple[str, bytes], ...]:
    """Make files that are unusual and valid, as (name, data); names are unique.

    Once in a process: an animated AVIF holds the second in which it was made.
    """
    image = base_image(seed)
    return (*_odd_jpegs(image), *_odd_pngs(image), *_other_formats(image))


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    return exif


def _odd_jpegs(image: Image.Image) -> list[tuple[str, bytes]]:
    jpeg = encode(image, "JPEG")
    cmyk = encode(image.convert("CMYK"), "JPEG")
    ycck = bytearray(cmyk)
    ycck[ycck.index(b"Adobe") + 11] = 2
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    files = {
        "cmyk.jpg": cmyk,
        "ycck.jpg": bytes(ycck),
        "grey.jpg": encode(image.convert("L"), "JPEG"),
        "progressive.jpg": encode(image, "JPEG", progressive=True),
        "rgb.jpg": encode(image, "JPEG", keep_rgb=True),
        "restarts.jpg": encode(image, "JPEG", restart_marker_blocks=3),
        "two_pictures.jpg": encode(image, "MPO", save_all=True, append_images=[mirrored]),
        "trailing_bytes.jpg": jpeg + b"what a camera app left behind" * 9,
        "xmp_orientation.jpg": encode(image, "JPEG", xmp=_XMP),
        "one_px.jpg": encode(image.crop((0, 0, 1, 1)), "JPEG"),
    }
    for orientation in range(1, 9):
        files[f"exif_{orientation}.jpg"] = encode(image, "JPEG", exif=_exif(orientation))
    return list(files.items())


def _odd_pngs(image: Image.Image) -> list[tuple[str, bytes]]:
    see_through = image.convert("RGBA")
    see_through.putalpha(image.convert("L"))
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    wide = np.asarray(image).astype(np.uint16) * 256 + 77
    files = {
        "grey_16_bit.png": png16(wide[:, :, 0]),
        "rgb_16_bit.png": png16(wide),
        "palette.png": encode(image.quantize(16), "PNG", transparency=3),
        "rgba.png": encode(see_through, "PNG"),
        "grey_alpha.png": encode(see_through.convert("LA"), "PNG"),
        "one_bit.png": encode(image.convert("1"), "PNG"),
        "animated.png": encode(image, "PNG", save_all=True, append_images=[mirrored]),
        "exif_6.png": encode(image, "PNG", exif=_exif(6)),
        "png_named.jpg": encode(image, "PNG"),
        "one_px.png": encode(image.crop((0, 0, 1, 1)), "PNG"),
    }
    return list(files.items())


def _other_formats(image: Image.Image) -> list[tuple[str, bytes]]:
    see_through = image.convert("RGBA")
    see_through.putalpha(image.convert("L"))
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    files = {
        "plain.gif": encode(image, "GIF"),
        "animated.gif": encode(image, "GIF", save_all=True, append_images=[mirrored]),
        "plain.webp": encode(image, "WEBP"),
        "lossless_alpha.webp": encode(see_through, "WEBP", lossless=True),
        "animated.webp": encode(image, "WEBP", save_all=True, append_images=[mirrored]),
        "exif_8.webp": encode(image, "WEBP", exif=_exif(8)),
        "plain.bmp": encode(image, "BMP"),
        "palette.bmp": encode(image.quantize(16), "BMP"),
        "tiff.jpg": encode(image, "TIFF"),
        "plain.avif": encode(image, "AVIF", quality=90),
        "exif_5.avif": encode(image, "AVIF", exif=_exif(5)),
        "animated.avif": encode(image, "AVIF", save_all=True, append_images=[mirrored]),
        "alpha.avif": encode(see_through, "AVIF"),
        "one_px.avif": encode(image.crop((0, 0, 1, 1)), "AVIF"),
        **_tiffs(image, see_through),
    }
    return list(files.items())


def _tiffs(image: Image.Image, see_through: Image.Image) -> dict[str, bytes]:
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    compressions = ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")
    files = {
        f"{compression}.tif": encode(image, "TIFF", compression=compression)
        for compression in compressions
    }
    files |= {
        "cmyk.tif": encode(image.convert("CMYK"), "TIFF"),
        "grey.tif": encode(image.convert("L"), "TIFF", compression="tiff_lzw"),
        "palette.tif": encode(image.quantize(16), "TIFF"),
        "rgba.tif": encode(see_through, "TIFF", compression="tiff_deflate"),
        "fax.tif": encode(image.convert("1"), "TIFF", compression="group4"),
        "two_pages.tif": encode(image, "TIFF", save_all=True, append_images=[mirrored]),
        "big.tif": encode(image, "TIFF", big_tiff=True),
    }
    for orientation in range(2, 9):
        files[f"exif_{orientation}.tif"] = encode(image, "TIFF", exif=_exif(orientation))
    return files
