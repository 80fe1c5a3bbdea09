"""Image files that are whole and contradict themselves, and what is no image but was named one.

Each is made from a base image and has a kind, so that a test can say how many kinds there are.
"""

from __future__ import annotations

import base64
import gzip
import io
import struct
import zipfile
import zlib

import numpy as np
from PIL import Image

from pipeline.core.failures import Reason
from support.inputs.encoded import PNG_MAGIC, chunk, encode

Broken = dict[str, tuple[str, bytes, Reason]]
"""Name -> kind, data, and the reason that it must get."""


def broken_files(image: Image.Image) -> Broken:
    """Make them all; names are unique."""
    return {
        **_disguised(image),
        **_unread(image),
        **_mangled(image),
        **_jpegs(image),
        **_pngs(image),
        **_png_bodies(image),
        **_gifs(image),
        **_webps(image),
        **_bmps(image),
    }


def _disguised(image: Image.Image) -> Broken:
    jpeg = encode(image, "JPEG")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(zipfile.ZipInfo("photo.jpg"), jpeg)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 1\n" % (b"a" * 64)
    files = {
        "denied.jpg": ("answer of a server", b"<Error><Code>AccessDenied</Code></Error>"),
        "answer.png": ("answer of a server", b'{"error": "no such key"}'),
        "pointer.jpg": ("pointer to a file", pointer),
        "base64.jpg": ("written as text", base64.b64encode(jpeg)),
        "data_uri.jpg": ("written as text", b"data:image/jpeg;base64," + base64.b64encode(jpeg)),
        "gzipped.jpg": ("packed", gzip.compress(jpeg, mtime=0)),
        "zipped.jpg": ("packed", archive.getvalue()),
        "program.gif": ("program", b"\x7fELF\2\1\1" + bytes(100)),
    }
    return {name: (*found, Reason.UNIDENTIFIED) for name, found in files.items()}


def _unread(image: Image.Image) -> Broken:
    """What is told by its first bytes, and not read."""
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>'
    raw = b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(100)
    files = {
        "drawing.png": ("script", svg),
        "drawing.jpg": ("script", b'\xef\xbb\xbf<?xml version="1.0"?>\n' + svg),
        "postscript.jpg": ("script", b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) run\n%%EOF\n"),
        "document.pdf": ("document", b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF\n"),
        "pixmap.png": ("another format", encode(image, "PPM")),
        "photo.jp2": ("another format", encode(image, "JPEG2000")),
        "icon.ico": ("another format", encode(image, "ICO", sizes=[(16, 16)])),
        "film.mp4": ("another format", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(100)),
        "photo.cr3": ("camera raw", raw),
        "photo.raf": ("camera raw", b"FUJIFILMCCD-RAW 0201" + bytes(200)),
        "scan.dcm": ("another format", bytes(128) + b"DICM" + bytes(100)),
    }
    return {name: (*found, Reason.UNSUPPORTED_FORMAT) for name, found in files.items()}


def _mangled(image: Image.Image) -> Broken:
    """What a careless transfer makes of a file."""
    jpeg, png = encode(image, "JPEG"), encode(image, "PNG")
    swapped = b"".join(jpeg[at : at + 2][::-1] for at in range(0, len(jpeg), 2))
    files = {
        "byte_order_mark.jpg": b"\xef\xbb\xbf" + jpeg,
        "as_utf8.jpg": jpeg.decode("latin-1").encode("utf-8"),
        "swapped_bytes.jpg": swapped,
        "lf_to_crlf.png": png.replace(b"\n", b"\r\n"),
        "crlf_to_lf.png": png.replace(b"\r\n", b"\n"),
        "seven_bits.png": bytes(byte & 0x7F for byte in png),
    }
    return {name: ("mangled", data, Reason.UNIDENTIFIED) for name, data in files.items()}


def _patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def _segment(jpeg: bytes, marker: bytes) -> tuple[int, int]:
    start = jpeg.index(marker)
    return start, start + 2 + int(struct.unpack(">H", jpeg[start + 2 : start + 4])[0])


def _without(jpeg: bytes, marker: bytes) -> bytes:
    while marker in jpeg:
        start, end = _segment(jpeg, marker)
        jpeg = jpeg[:start] + jpeg[end:]
    return jpeg


def _jpegs(image: Image.Image) -> Broken:
    jpeg = encode(image, "JPEG")
    start, end = _segment(jpeg, b"\xff\xc0")
    huffman = jpeg.index(b"\xff\xc4")
    files = {
        "no_height.jpg": ("no pixels", _patched(jpeg, start + 5, b"\0\0")),
        "no_width.jpg": ("no pixels", _patched(jpeg, start + 7, b"\0\0")),
        "no_quantisation.jpg": ("missing table", _without(jpeg, b"\xff\xdb")),
        "no_frame.jpg": ("missing header", _without(jpeg, b"\xff\xc0")),
        "scan_first.jpg": ("missing header", jpeg[:2] + jpeg[jpeg.index(b"\xff\xda") :]),
        "two_frames.jpg": ("doubled header", jpeg[:end] + jpeg[start:end] + jpeg[end:]),
        "lossless.jpg": ("another process", _patched(jpeg, start, b"\xff\xc3")),
        "five_components.jpg": ("impossible colours", _patched(jpeg, start + 9, b"\5")),
        "no_sampling.jpg": ("impossible sampling", _patched(jpeg, start + 11, b"\0")),
        "sampling_15.jpg": ("impossible sampling", _patched(jpeg, start + 11, b"\xff")),
        "table_7.jpg": ("impossible table", _patched(jpeg, start + 12, b"\7")),
        "long_codes.jpg": ("impossible table", _patched(jpeg, huffman + 5, b"\xff" * 16)),
        "start_and_end.jpg": ("nothing between", b"\xff\xd8\xff\xd9"),
    }
    found: Broken = {name: (*pair, Reason.DECODE_ERROR) for name, pair in files.items()}
    lie = _patched(jpeg, start + 2, b"\xff\xff")
    return found | {"long_frame.jpg": ("length that lies", lie, Reason.TRUNCATED)}


def _header(image: Image.Image, **changes: int) -> bytes:
    fields = {"width": image.width, "height": image.height, "depth": 8, "colours": 2}
    fields |= {"compression": 0, "filtering": 0, "interlace": 0}
    return chunk(b"IHDR", struct.pack(">IIBBBBB", *(fields | changes).values()))


def _raw(image: Image.Image) -> bytes:
    return b"".join(b"\0" + line.tobytes() for line in np.asarray(image))


def _pngs(image: Image.Image) -> Broken:
    """Headers that cannot be, and chunks that are missing or lie."""
    body = chunk(b"IDAT", zlib.compress(_raw(image))) + chunk(b"IEND", b"")
    impossible = {
        "no_height.png": ("no pixels", {"height": 0}),
        "no_width.png": ("no pixels", {"width": 0}),
        "three_bits.png": ("impossible depth", {"depth": 3}),
        "colours_5.png": ("impossible colours", {"colours": 5}),
        "filtering_1.png": ("impossible method", {"filtering": 1}),
        "interlace_2.png": ("impossible method", {"interlace": 2}),
    }
    found: Broken = {
        name: (kind, PNG_MAGIC + _header(image, **changes) + body, Reason.DECODE_ERROR)
        for name, (kind, changes) in impossible.items()
    }
    header, end = _header(image), chunk(b"IEND", b"")
    bomb = b"a\0\0" + zlib.compress(bytes(80_000_000), 9)
    long = struct.pack(">I", 2**31 - 1) + body[4:]
    short = chunk(b"IHDR", struct.pack(">I", 1))
    files = {
        "no_header.png": ("missing header", body, Reason.DECODE_ERROR),
        "no_data.png": ("nothing between", header + end, Reason.DECODE_ERROR),
        "text_bomb.png": ("bomb beside the pixels", header + chunk(b"zTXt", bomb) + body, None),
        "profile_bomb.png": ("bomb beside the pixels", header + chunk(b"iCCP", bomb) + body, None),
        "empty_data.png": ("nothing between", header + chunk(b"IDAT", b"") + end, Reason.TRUNCATED),
        "long_chunk.png": ("length that lies", header + long, Reason.TRUNCATED),
        "short_header.png": ("length that lies", short + body, Reason.TRUNCATED),
    }
    for name, (kind, data, reason) in files.items():
        found[name] = (kind, PNG_MAGIC + data, reason or Reason.DECODE_ERROR)
    return found


def _png_bodies(image: Image.Image) -> Broken:
    """Compressed data that cannot be unpacked, or hold something else."""
    raw = _raw(image)
    packed = zlib.compress(raw)
    bodies = {
        "not_zlib.png": ("broken compression", b"not compressed " * 9, Reason.DECODE_ERROR),
        "wrong_sum.png": ("wrong checksum", packed[:-4] + bytes(4), Reason.DECODE_ERROR),
        "filter_9.png": (
            "impossible filter",
            zlib.compress(b"\x09" + raw[1:]),
            Reason.DECODE_ERROR,
        ),
        "half_stream.png": ("cut inside", packed[: len(packed) // 2], Reason.TRUNCATED),
        "half_rows.png": (
            "fewer rows than it says",
            zlib.compress(raw[: len(raw) // 2]),
            Reason.TRUNCATED,
        ),
    }
    return {
        name: (
            kind,
            PNG_MAGIC + _header(image) + chunk(b"IDAT", data) + chunk(b"IEND", b""),
            reason,
        )
        for name, (kind, data, reason) in bodies.items()
    }


def _gifs(image: Image.Image) -> Broken:
    gif = encode(image, "GIF")
    palette_end = 13 + 3 * 2 ** ((gif[10] & 7) + 1)
    frame = gif.index(b",", palette_end)
    noise = gif[: frame + 12] + b"\x55" * (len(gif) - frame - 14) + b"\0;"
    far = struct.pack("<HHHH", 60_000, 60_000, image.width, image.height)
    huge = struct.pack("<HHHH", 0, 0, 65_535, 65_535)
    return {
        "no_frame.gif": ("nothing between", gif[:palette_end] + b";", Reason.DECODE_ERROR),
        "code_size_15.gif": (
            "impossible table",
            _patched(gif, frame + 10, b"\x0f"),
            Reason.DECODE_ERROR,
        ),
        "noise_inside.gif": ("broken compression", noise, Reason.DECODE_ERROR),
        "header.gif": ("header only", gif[:13], Reason.TRUNCATED),
        "frame_far_outside.gif": (
            "says it is huge",
            _patched(gif, frame + 1, far),
            Reason.TOO_LARGE,
        ),
        "huge_frame.gif": ("says it is huge", _patched(gif, frame + 1, huge), Reason.TOO_LARGE),
        "huge_screen.gif": ("says it is huge", _patched(gif, 6, b"\xff" * 4), Reason.TOO_LARGE),
    }


def _webps(image: Image.Image) -> Broken:
    webp = encode(image, "WEBP")
    extended = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(10)
    files = {
        "short_file.webp": ("length that lies", _patched(webp, 4, struct.pack("<I", 10))),
        "long_chunk.webp": ("length that lies", _patched(webp, 16, struct.pack("<I", 2**31))),
        "no_chunk.webp": ("nothing between", b"RIFF" + struct.pack("<I", 4) + b"WEBP"),
        "no_frame.webp": ("nothing between", extended),
        "other_chunk.webp": ("missing header", _patched(webp, 12, b"VP8?")),
        "no_start_code.webp": ("missing header", _patched(webp, 23, b"abc")),
    }
    return {name: (*pair, Reason.DECODE_ERROR) for name, pair in files.items()}


def _bmps(image: Image.Image) -> Broken:
    bmp, palette = encode(image, "BMP"), encode(image.quantize(16), "BMP")
    lowest = struct.pack("<i", -(2**31))
    return {
        "no_width.bmp": ("no pixels", _patched(bmp, 18, bytes(4)), Reason.DECODE_ERROR),
        "run_length_rgb.bmp": ("impossible method", _patched(bmp, 30, b"\1"), Reason.DECODE_ERROR),
        "compression_99.bmp": (
            "impossible method",
            _patched(bmp, 30, b"\x63"),
            Reason.DECODE_ERROR,
        ),
        "colours_70000.bmp": (
            "impossible table",
            _patched(palette, 46, struct.pack("<I", 70_000)),
            Reason.DECODE_ERROR,
        ),
        "negative_width.bmp": (
            "says it is huge",
            _patched(bmp, 18, struct.pack("<i", -83)),
            Reason.TOO_LARGE,
        ),
        "lowest_height.bmp": ("says it is huge", _patched(bmp, 22, lowest), Reason.TOO_LARGE),
        "pixels_far_away.bmp": (
            "length that lies",
            _patched(bmp, 10, struct.pack("<I", 10**6)),
            Reason.TRUNCATED,
        ),
    }
