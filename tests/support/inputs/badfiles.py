"""Image files from a seed: malformed ones with their reasons, and valid odd ones.

Quick to import and to run: see `encoded` for how images are made.
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.core.failures import Reason
from support.inputs.encoded import (
    PNG_MAGIC,
    base_image,
    chunk,
    encode,
    packed_zeros,
    png,
    png16,
    png_strip,
)

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


Files = dict[str, bytes]


def broken_files(image: Image.Image) -> Iterator[tuple[Reason, Files]]:
    """Yield files made from an image, names are unique, with the reason that they must get."""
    yield Reason.UNSUPPORTED_FORMAT, _unread(image)
    for make in (_jpegs, _pngs, _others):
        yield from make(image).items()


def _unread(image: Image.Image) -> Files:
    """What is told by its first bytes, and not read."""
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>'
    return {
        "drawing.png": svg,
        "drawing.jpg": b'\xef\xbb\xbf<?xml version="1.0"?>\n' + svg,
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) run\n%%EOF\n",
        "document.pdf": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF\n",
        "pixmap.png": encode(image, "PPM"),
        "photo.jp2": encode(image, "JPEG2000"),
        "icon.ico": encode(image, "ICO", sizes=[(16, 16)]),
        "film.mp4": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(100),
        "photo.cr3": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(100),
        "photo.raf": b"FUJIFILMCCD-RAW 0201" + bytes(200),
        "scan.dcm": bytes(128) + b"DICM" + bytes(100),
    }


def _patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def _jpegs(image: Image.Image) -> dict[Reason, Files]:
    """A size that cannot be, an unread kind of frame, and headers that are missing or lie."""
    jpeg = encode(image, "JPEG")
    start, scan = jpeg.index(b"\xff\xc0"), jpeg.index(b"\xff\xda")
    impossible = {
        "no_height.jpg": _patched(jpeg, start + 5, b"\0\0"),
        "scan_first.jpg": jpeg[:2] + jpeg[scan:],
        "two_frames.jpg": jpeg[:scan] + jpeg[start:],
        "lossless.jpg": _patched(jpeg, start, b"\xff\xc3"),
        "long_codes.jpg": _patched(jpeg, jpeg.index(b"\xff\xc4") + 5, b"\xff" * 16),
        "start_and_end.jpg": b"\xff\xd8\xff\xd9",
    }
    lie = {"long_frame.jpg": _patched(jpeg, start + 2, b"\xff\xff")}
    return {Reason.DECODE_ERROR: impossible, Reason.TRUNCATED: lie}


def _pngs(image: Image.Image) -> dict[Reason, Files]:
    """Headers that cannot be, chunks that are missing or lie, and bombs beside the pixels."""

    def header(height: int = image.height, depth: int = 8) -> bytes:
        return chunk(b"IHDR", struct.pack(">IIBBBBB", image.width, height, depth, 2, 0, 0, 0))

    def whole(pixels: bytes) -> bytes:
        return header() + chunk(b"IDAT", pixels) + end

    end, bomb = chunk(b"IEND", b""), b"a\0\0" + packed_zeros(80_000_000)
    raw = b"".join(b"\0" + line.tobytes() for line in np.asarray(image))
    packed = zlib.compress(raw)
    body = chunk(b"IDAT", packed) + end
    impossible = {
        "no_height.png": header(height=0) + body,
        "three_bits.png": header(depth=3) + body,
        "no_header.png": body,
        "no_data.png": header() + end,
        "text_bomb.png": header() + chunk(b"zTXt", bomb) + body,
        "profile_bomb.png": header() + chunk(b"iCCP", bomb) + body,
        "wrong_sum.png": whole(packed[:-4] + bytes(4)),
        "filter_9.png": whole(zlib.compress(b"\x09" + raw[1:])),
    }
    short = {
        "empty_data.png": whole(b""),
        "short_header.png": chunk(b"IHDR", struct.pack(">I", 1)) + body,
        "half_stream.png": whole(packed[: len(packed) // 2]),
        "half_rows.png": whole(zlib.compress(raw[: len(raw) // 2])),
    }
    return {
        reason: {name: PNG_MAGIC + data for name, data in files.items()}
        for reason, files in ((Reason.DECODE_ERROR, impossible), (Reason.TRUNCATED, short))
    }


def _others(image: Image.Image) -> dict[Reason, Files]:
    """GIF, WebP and BMP without a frame, with one that is huge, or with pixels elsewhere."""
    gif, webp, bmp = (encode(image, name) for name in ("GIF", "WEBP", "BMP"))
    palette_end = 13 + 3 * 2 ** ((gif[10] & 7) + 1)
    frame = gif.index(b",", palette_end)
    extended = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(10)
    return {
        Reason.DECODE_ERROR: {
            "no_frame.gif": gif[:palette_end] + b";",
            "code_size_15.gif": _patched(gif, frame + 10, b"\x0f"),
            "short_file.webp": _patched(webp, 4, struct.pack("<I", 10)),
            "long_chunk.webp": _patched(webp, 16, struct.pack("<I", 2**31)),
            "no_frame.webp": extended,
            "compression_99.bmp": _patched(bmp, 30, b"\x63"),
        },
        Reason.TRUNCATED: {
            "header.gif": gif[:13],
            "pixels_far_away.bmp": _patched(bmp, 10, struct.pack("<I", 10**6)),
        },
        Reason.TOO_LARGE: {
            "huge_frame.gif": _patched(gif, frame + 1, b"\0\0\0\0\xff\xff\xff\xff"),
            "negative_width.bmp": _patched(bmp, 18, struct.pack("<i", -83)),
        },
    }
