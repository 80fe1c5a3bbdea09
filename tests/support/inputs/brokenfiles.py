"""Image files that are whole and contradict themselves, and what is no image but was named one."""

from __future__ import annotations

import base64
import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from pipeline.core.failures import Reason
from support.inputs.encoded import PNG_MAGIC, chunk, encode, packed_zeros

Files = dict[str, bytes]


def broken_files(image: Image.Image) -> Iterator[tuple[Reason, Files]]:
    """Yield files made from an image, names are unique, with the reason that they must get."""
    yield Reason.UNIDENTIFIED, _disguised(image) | _mangled(image)
    yield Reason.UNSUPPORTED_FORMAT, _unread(image)
    for make in (_jpegs, _pngs, _png_bodies, _gifs, _webps, _bmps):
        yield from make(image).items()


def _disguised(image: Image.Image) -> Files:
    jpeg = encode(image, "JPEG")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(zipfile.ZipInfo("photo.jpg"), jpeg)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 1\n" % (b"a" * 64)
    return {
        "denied.jpg": b"<Error><Code>AccessDenied</Code></Error>",
        "answer.png": b'{"error": "no such key"}',
        "pointer.jpg": pointer,
        "base64.jpg": base64.b64encode(jpeg),
        "data_uri.jpg": b"data:image/jpeg;base64," + base64.b64encode(jpeg),
        "gzipped.jpg": gzip.compress(jpeg, mtime=0),
        "zipped.jpg": archive.getvalue(),
        "program.gif": b"\x7fELF\2\1\1" + bytes(100),
    }


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


def _mangled(image: Image.Image) -> Files:
    """What a careless transfer makes of a file."""
    jpeg, png = encode(image, "JPEG"), encode(image, "PNG")
    return {
        "byte_order_mark.jpg": b"\xef\xbb\xbf" + jpeg,
        "as_utf8.jpg": jpeg.decode("latin-1").encode("utf-8"),
        "swapped_bytes.jpg": b"".join(jpeg[at : at + 2][::-1] for at in range(0, len(jpeg), 2)),
        "lf_to_crlf.png": png.replace(b"\n", b"\r\n"),
        "crlf_to_lf.png": png.replace(b"\r\n", b"\n"),
        "seven_bits.png": bytes(byte & 0x7F for byte in png),
    }


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


def _jpegs(image: Image.Image) -> dict[Reason, Files]:
    """Sizes, samplings and tables that cannot be; headers that are missing or there twice."""
    jpeg = encode(image, "JPEG")
    start, end = _segment(jpeg, b"\xff\xc0")
    huffman = jpeg.index(b"\xff\xc4")
    impossible = {
        "no_height.jpg": _patched(jpeg, start + 5, b"\0\0"),
        "no_width.jpg": _patched(jpeg, start + 7, b"\0\0"),
        "no_quantisation.jpg": _without(jpeg, b"\xff\xdb"),
        "no_frame.jpg": _without(jpeg, b"\xff\xc0"),
        "scan_first.jpg": jpeg[:2] + jpeg[jpeg.index(b"\xff\xda") :],
        "two_frames.jpg": jpeg[:end] + jpeg[start:end] + jpeg[end:],
        "lossless.jpg": _patched(jpeg, start, b"\xff\xc3"),
        "five_components.jpg": _patched(jpeg, start + 9, b"\5"),
        "no_sampling.jpg": _patched(jpeg, start + 11, b"\0"),
        "sampling_15.jpg": _patched(jpeg, start + 11, b"\xff"),
        "table_7.jpg": _patched(jpeg, start + 12, b"\7"),
        "long_codes.jpg": _patched(jpeg, huffman + 5, b"\xff" * 16),
        "start_and_end.jpg": b"\xff\xd8\xff\xd9",
    }
    lie = {"long_frame.jpg": _patched(jpeg, start + 2, b"\xff\xff")}
    return {Reason.DECODE_ERROR: impossible, Reason.TRUNCATED: lie}


def _header(image: Image.Image, **changes: int) -> bytes:
    fields = {"width": image.width, "height": image.height, "depth": 8, "colours": 2}
    fields |= {"compression": 0, "filtering": 0, "interlace": 0}
    return chunk(b"IHDR", struct.pack(">IIBBBBB", *(fields | changes).values()))


def _raw(image: Image.Image) -> bytes:
    return b"".join(b"\0" + line.tobytes() for line in np.asarray(image))


def _pngs(image: Image.Image) -> dict[Reason, Files]:
    """Headers that cannot be, chunks that are missing or lie, and bombs beside the pixels."""
    header, end = _header(image), chunk(b"IEND", b"")
    body = chunk(b"IDAT", zlib.compress(_raw(image))) + end
    bomb = b"a\0\0" + packed_zeros(80_000_000)
    impossible = {
        "no_height.png": _header(image, height=0) + body,
        "no_width.png": _header(image, width=0) + body,
        "three_bits.png": _header(image, depth=3) + body,
        "colours_5.png": _header(image, colours=5) + body,
        "filtering_1.png": _header(image, filtering=1) + body,
        "interlace_2.png": _header(image, interlace=2) + body,
        "no_header.png": body,
        "no_data.png": header + end,
        "text_bomb.png": header + chunk(b"zTXt", bomb) + body,
        "profile_bomb.png": header + chunk(b"iCCP", bomb) + body,
    }
    short = {
        "empty_data.png": header + chunk(b"IDAT", b"") + end,
        "long_chunk.png": header + struct.pack(">I", 2**31 - 1) + body[4:],
        "short_header.png": chunk(b"IHDR", struct.pack(">I", 1)) + body,
    }
    return {Reason.DECODE_ERROR: _of_png(impossible), Reason.TRUNCATED: _of_png(short)}


def _of_png(files: Files) -> Files:
    return {name: PNG_MAGIC + data for name, data in files.items()}


def _png_bodies(image: Image.Image) -> dict[Reason, Files]:
    """Compressed data that cannot be unpacked, or hold something else."""
    raw = _raw(image)
    packed = zlib.compress(raw)
    broken = {
        "not_zlib.png": b"not compressed " * 9,
        "wrong_sum.png": packed[:-4] + bytes(4),
        "filter_9.png": zlib.compress(b"\x09" + raw[1:]),
    }
    half = {
        "half_stream.png": packed[: len(packed) // 2],
        "half_rows.png": zlib.compress(raw[: len(raw) // 2]),
    }

    def whole(bodies: Files) -> Files:
        ends = chunk(b"IEND", b"")
        return _of_png(
            {name: _header(image) + chunk(b"IDAT", data) + ends for name, data in bodies.items()}
        )

    return {Reason.DECODE_ERROR: whole(broken), Reason.TRUNCATED: whole(half)}


def _gifs(image: Image.Image) -> dict[Reason, Files]:
    gif = encode(image, "GIF")
    palette_end = 13 + 3 * 2 ** ((gif[10] & 7) + 1)
    frame = gif.index(b",", palette_end)
    far = struct.pack("<HHHH", 60_000, 60_000, image.width, image.height)
    huge = struct.pack("<HHHH", 0, 0, 65_535, 65_535)
    return {
        Reason.DECODE_ERROR: {
            "no_frame.gif": gif[:palette_end] + b";",
            "code_size_15.gif": _patched(gif, frame + 10, b"\x0f"),
            "noise_inside.gif": gif[: frame + 12] + b"\x55" * (len(gif) - frame - 14) + b"\0;",
        },
        Reason.TRUNCATED: {"header.gif": gif[:13]},
        Reason.TOO_LARGE: {
            "frame_far_outside.gif": _patched(gif, frame + 1, far),
            "huge_frame.gif": _patched(gif, frame + 1, huge),
            "huge_screen.gif": _patched(gif, 6, b"\xff" * 4),
        },
    }


def _webps(image: Image.Image) -> dict[Reason, Files]:
    webp = encode(image, "WEBP")
    extended = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(10)
    return {
        Reason.DECODE_ERROR: {
            "short_file.webp": _patched(webp, 4, struct.pack("<I", 10)),
            "long_chunk.webp": _patched(webp, 16, struct.pack("<I", 2**31)),
            "no_chunk.webp": b"RIFF" + struct.pack("<I", 4) + b"WEBP",
            "no_frame.webp": extended,
            "other_chunk.webp": _patched(webp, 12, b"VP8?"),
            "no_start_code.webp": _patched(webp, 23, b"abc"),
        }
    }


def _bmps(image: Image.Image) -> dict[Reason, Files]:
    bmp, palette = encode(image, "BMP"), encode(image.quantize(16), "BMP")
    return {
        Reason.DECODE_ERROR: {
            "no_width.bmp": _patched(bmp, 18, bytes(4)),
            "run_length_rgb.bmp": _patched(bmp, 30, b"\1"),
            "compression_99.bmp": _patched(bmp, 30, b"\x63"),
            "colours_70000.bmp": _patched(palette, 46, struct.pack("<I", 70_000)),
        },
        Reason.TOO_LARGE: {
            "negative_width.bmp": _patched(bmp, 18, struct.pack("<i", -83)),
            "lowest_height.bmp": _patched(bmp, 22, struct.pack("<i", -(2**31))),
        },
        Reason.TRUNCATED: {
            "pixels_far_away.bmp": _patched(bmp, 10, struct.pack("<I", 10**6)),
        },
    }
