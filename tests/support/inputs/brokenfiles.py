"""Image files that are whole and contradict themselves, and those of formats that are not read."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from pipeline.core.failures import Reason
from support.inputs.encoded import PNG_MAGIC, chunk, encode, packed_zeros

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
