"""Image files made from a seed: malformed ones with the reason they must get, and valid odd ones.

Quick to import and to run: the base image is a gradient with noise, Pillow encodes it, and what no
encoder writes (lying headers, wrong checksums, bombs, 16 bits) is assembled by hand.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.schema import Reason

MAX_IMAGE_BYTES = 1024 * 1024
"""`too_many_bytes.jpg` is larger than this; every other file is smaller."""
MAX_IMAGE_PX = 100_000_000
"""The bombs and lying headers reach this; every other file is far smaller."""

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
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


def base_image(seed: int, width_px: int = 83, height_px: int = 61) -> Image.Image:
    """Make an RGB image with structure and noise; equal for equal arguments."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height_px, 0:width_px]
    planes = np.stack([255 * x / width_px, 255 * y / height_px, 127 + 99 * np.sin(x / 9)], axis=-1)
    noisy = planes + rng.integers(-20, 21, planes.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """Encode with Pillow; `options` are those of `Image.save`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bad_files(seed: int) -> list[BadFile]:
    """Make files that no decoder may turn into a prediction; names are unique."""
    return [
        *_not_images(seed),
        *_cut_files(seed),
        *_too_large_files(seed),
        *_corrupt_files(seed),
    ]


def _not_images(seed: int) -> list[BadFile]:
    image = base_image(seed)
    files = {
        "text.jpg": b"Bring milk and bread, please.\n" * 9,
        "bm_text.bmp": b"BM is how this text begins, and a bitmap as well.\n",
        "html.png": b"<!doctype html><title>404</title><p>Not found</p>\n",
        "tiff.jpg": encode(image, "TIFF"),
        "document.pdf": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF\n",
        "zeros.webp": bytes(500),
        "random.gif": b"\x01" + np.random.default_rng(seed).bytes(4000),
    }
    unidentified = [BadFile(name, data, Reason.UNIDENTIFIED) for name, data in files.items()]
    return [BadFile("empty.jpg", b"", Reason.EMPTY), *unidentified]


def _cut_files(seed: int) -> list[BadFile]:
    image = base_image(seed)
    jpeg = encode(image, "JPEG", quality=90)
    whole = {
        "jpg": jpeg,
        "progressive.jpg": encode(image, "JPEG", quality=90, progressive=True),
        "cmyk.jpg": encode(image.convert("CMYK"), "JPEG"),
        "png": encode(image, "PNG"),
        "webp": encode(image, "WEBP"),
        "lossless.webp": encode(image, "WEBP", lossless=True),
        "gif": encode(image, "GIF"),
        "bmp": encode(image, "BMP"),
    }
    files = {
        f"cut_at_{pct}_pct.{ending}": data[: len(data) * pct // 100]
        for ending, data in whole.items()
        for pct in (30, 60, 95)
    }
    files["header_only.jpg"] = jpeg[: jpeg.index(b"\xff\xda")]
    files["magic_only.jpg"] = jpeg[:4]
    files["magic_only.png"] = _PNG_MAGIC
    files["without_end.jpg"] = jpeg.removesuffix(_JPEG_END)
    files["without_end.png"] = whole["png"][:-12]
    files["zeros_from_60_pct.jpg"] = _zero_tail(jpeg)
    files["zeros_from_60_pct.png"] = _zero_tail(whole["png"])
    tall = bytearray(whole["bmp"])
    tall[22:26] = struct.pack("<i", 2 * image.height)
    files["says_double_height.bmp"] = bytes(tall)
    return [BadFile(name, data, Reason.TRUNCATED) for name, data in files.items()]


def _zero_tail(data: bytes) -> bytes:
    """Look like a file whose space was reserved but whose download stopped."""
    kept = len(data) * 60 // 100
    return data[:kept] + bytes(len(data) - kept)


def _too_large_files(seed: int) -> list[BadFile]:
    image = base_image(seed)
    jpeg = bytearray(encode(image, "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
    webp = bytearray(encode(image, "WEBP", lossless=True))
    size_bits = int.from_bytes(webp[21:25], "little") & ~0xFFFFFFF
    webp[21:25] = (size_bits | 16382 | 16382 << 14).to_bytes(4, "little")
    bmp = bytearray(encode(image, "BMP"))
    bmp[18:26] = struct.pack("<ii", 12_000, 10_000)
    files = {
        "bomb.png": _png_bomb(30_000),
        "says_65500_px.jpg": bytes(jpeg),
        "says_16383_px.webp": bytes(webp),
        "says_12000_px.bmp": bytes(bmp),
        "too_many_bytes.jpg": encode(image, "JPEG") + bytes(MAX_IMAGE_BYTES),
    }
    return [BadFile(name, data, Reason.TOO_LARGE) for name, data in files.items()]


def _corrupt_files(seed: int) -> list[BadFile]:
    image = base_image(seed)
    noise = np.random.default_rng(seed).bytes(4000)
    twelve_bit = bytearray(encode(image, "JPEG"))
    twelve_bit[twelve_bit.index(b"\xff\xc0") + 4] = 12
    odd_depth = bytearray(encode(image, "BMP"))
    odd_depth[28:30] = struct.pack("<H", 7)
    flipped = bytearray(_png(image))
    flipped[len(flipped) // 2] ^= 0x10
    files = {
        "random_after_magic.jpg": b"\xff\xd8\xff\x37" + noise + _JPEG_END,
        "random_after_magic.png": _PNG_MAGIC + noise + _chunk(b"IEND", b""),
        "twelve_bit.jpg": bytes(twelve_bit),
        "seven_bit.bmp": bytes(odd_depth),
        "wrong_checksum.png": _png(image, crc_error=1),
        "flipped_bit.png": bytes(flipped),
    }
    return [BadFile(name, data, Reason.DECODE_ERROR) for name, data in files.items()]


def _chunk(kind: bytes, body: bytes, crc_error: int = 0) -> bytes:
    crc = zlib.crc32(kind + body) ^ crc_error
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def _png(image: Image.Image, *, crc_error: int = 0) -> bytes:
    """Assemble an uncompressed RGB PNG: a flipped bit is a wrong pixel and breaks no zlib code."""
    pixels = np.asarray(image)
    raw = b"".join(b"\0" + line.tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", *image.size, 8, 2, 0, 0, 0)
    data = _chunk(b"IDAT", zlib.compress(raw, 0), crc_error)
    return _PNG_MAGIC + _chunk(b"IHDR", header) + data + _chunk(b"IEND", b"")


def _png16(planes: np.ndarray) -> bytes:
    """Assemble a 16-bit PNG: uint16 (H, W) is grey, (H, W, 3) RGB."""
    lines = planes.astype(">u2").reshape(planes.shape[0], -1)
    raw = b"".join(b"\0" + line.tobytes() for line in lines)
    colour_type = 0 if planes.ndim == 2 else 2
    size_px = (planes.shape[1], planes.shape[0])
    header = struct.pack(">IIBBBBB", *size_px, 16, colour_type, 0, 0, 0)
    data = _chunk(b"IDAT", zlib.compress(raw))
    return _PNG_MAGIC + _chunk(b"IHDR", header) + data + _chunk(b"IEND", b"")


@functools.cache
def _png_bomb(side_px: int) -> bytes:
    """Assemble an all-zero 1-bit grey PNG: small here, 3 bytes a pixel once decoded to RGB."""
    line = bytes(1 + (side_px + 7) // 8)
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(line * 1000) for _ in range(side_px // 1000))
    header = struct.pack(">IIBBBBB", side_px, side_px, 1, 0, 0, 0, 0)
    data = _chunk(b"IDAT", packed + packer.flush())
    return _PNG_MAGIC + _chunk(b"IHDR", header) + data + _chunk(b"IEND", b"")


def good_odd_files(seed: int) -> list[tuple[str, bytes]]:
    """Make files that are unusual and valid, as (name, data); names are unique."""
    image = base_image(seed)
    return [*_odd_jpegs(image), *_odd_pngs(image), *_other_formats(image)]


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
        "grey_16_bit.png": _png16(wide[:, :, 0]),
        "rgb_16_bit.png": _png16(wide),
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
    }
    return list(files.items())
