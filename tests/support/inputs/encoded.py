"""Images from a seed, and the pieces of their files for what no encoder writes.

The base image is a gradient with noise, Pillow encodes it, and PNGs are also assembled by hand.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def base_image(seed: int, width_px: int = 83, height_px: int = 61) -> Image.Image:
    """Make an RGB image with structure and noise; equal for equal arguments."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height_px, 0:width_px]
    planes = np.stack([255 * x / width_px, 255 * y / height_px, 127 + 99 * np.sin(x / 9)], axis=-1)
    noisy = planes + rng.integers(-20, 21, planes.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def encode(image: Image.Image, format_name: str, **options: object) -> bytes:
    """Encode with Pillow; `options` are those of `Image.save`."""
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def chunk(chunk_type: bytes, body: bytes, crc_error: int = 0) -> bytes:
    crc = zlib.crc32(chunk_type + body) ^ crc_error
    return struct.pack(">I", len(body)) + chunk_type + body + struct.pack(">I", crc)


def png(image: Image.Image, *, crc_error: int = 0) -> bytes:
    """Assemble an uncompressed RGB PNG: a flipped bit is a wrong pixel and breaks no zlib code."""
    pixels = np.asarray(image)
    raw = b"".join(b"\0" + line.tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", *image.size, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(raw, 0), crc_error)
    return PNG_MAGIC + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def png16(planes: np.ndarray) -> bytes:
    """Assemble a 16-bit PNG: uint16 (H, W) is grey, (H, W, 3) RGB."""
    lines = planes.astype(">u2").reshape(planes.shape[0], -1)
    raw = b"".join(b"\0" + line.tobytes() for line in lines)
    colour_type = 0 if planes.ndim == 2 else 2
    size_px = (planes.shape[1], planes.shape[0])
    header = struct.pack(">IIBBBBB", *size_px, 16, colour_type, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(raw))
    return PNG_MAGIC + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def packed_zeros(num_bytes: int) -> bytes:
    """Compress zeros quickly: one block, again and again, as none refers to what is before it."""
    packer, size = zlib.compressobj(9, wbits=-15), 1 << 20
    block = packer.compress(bytes(size)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = packer.compress(bytes(num_bytes % size)) + packer.flush()
    checksum = struct.pack(">HH", num_bytes % 65521, 1)  # Adler-32
    return b"\x78\xda" + block * (num_bytes // size) + rest + checksum


def png_strip(width_px: int, height_px: int) -> bytes:
    """Assemble an all-zero 1-bit grey PNG of any shape: small here."""
    header = struct.pack(">IIBBBBB", width_px, height_px, 1, 0, 0, 0, 0)
    data = chunk(b"IDAT", packed_zeros((1 + (width_px + 7) // 8) * height_px))
    return PNG_MAGIC + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def tiff(pixels: bytes, order: str = "<", **changes: int | tuple[int, ...]) -> bytes:
    """Assemble a TIFF of one strip, or whatever the changes make of it; its directory comes last.

    Args:
        pixels: As they are stored.
        order: `<` or `>`.
        changes: Tags by number, as `t256`; each is a number or several of 32 bits.
    """
    tags: dict[int, int | tuple[int, ...]] = {
        256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 2**32 - 1, 279: len(pixels),
    }  # fmt: skip
    if "t324" in changes:  # tiles, then, and no strips
        tags = {tag: value for tag, value in tags.items() if tag not in (273, 278, 279)}
    tags |= {int(name[1:]): value for name, value in changes.items()}
    data = pixels + bytes(len(pixels) % 2)
    entries = []
    for tag, value in sorted(tags.items()):
        numbers = value if isinstance(value, tuple) else (value,)
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(packed) > 4:
            packed, data = struct.pack(f"{order}I", 8 + len(data)), data + packed
        entries.append(struct.pack(f"{order}HHI", tag, 4, len(numbers)) + packed)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)
    return magic + struct.pack(f"{order}I", 8 + len(data)) + data + directory
