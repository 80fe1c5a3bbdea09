"""Image and sound formats: one row per format, which all other code reads.

To add a format, add a row to `FORMATS`; if its decoder is a plugin of Pillow, also a branch to
`_load_decoder` in `preprocessing/images/image_checks.py`, and to `pyproject.toml` the extra that
installs it. Formats that are recognised only to be refused by their name are at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import pyarrow as pa

from pipeline.core.schema import AUDIO_FIELDS, IMAGE_FIELDS

Test = Callable[[bytes], bool]
_BMP_HEADER_BYTES = frozenset([12, 16, 40, 52, 56, 64, 108, 124])
_BRANDS_END = 512
_SVG_WITHIN = 1024


class MediaFormat(NamedTuple):
    """A format of images or of sound that is decoded."""

    name: str
    """As messages name it."""
    media: str
    """A key of `ENCODED`."""
    suffixes: tuple[str, ...]
    """Of the names of its files, without the dot, in lower case; the usual one first."""
    fits: Test
    """Tell by its first bytes whether a file has this format."""
    reader_names: tuple[str, ...]
    """The decoder's names of the format: Pillow's, or those of libsndfile for its containers."""
    package: str
    """The distribution that decodes it."""
    extra: str = ""
    """The extra of this package that installs the decoder; '' if it is always installed."""
    rare_suffixes: tuple[str, ...] = ()
    """Suffixes that come after the usual ones of all formats."""
    begins: str = ""
    """For messages: the first bytes that prove the format; '' if its test may hold by chance."""
    is_cut: Test = lambda _: False
    """Tell whether data that the decoder refuses lack the end that the format prescribes."""


def boxes(data: bytes) -> list[tuple[bytes, int, int]]:
    """Return the outermost boxes of AVIF or HEIC: the name, and the start and end in bytes."""
    outer, at = [], 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        elif size == 0:
            size = len(data) - at
        if size < 8:
            break
        outer.append((data[at + 4 : at + 8], at, at + size))
        at += size
    return outer


def id3_bytes(data: bytes) -> int:
    """Return how many bytes the ID3 tags before the frames of a clip take."""
    first = 0
    while data[first : first + 3] == b"ID3":
        size = [byte & 0x7F for byte in data[first + 6 : first + 10]]
        first += 10 + sum(byte << 7 * place for place, byte in enumerate(reversed(size)))
    return first


def _magic(*magics: bytes) -> Test:
    return lambda data: data.startswith(magics)


def _riff(content: bytes, *containers: bytes) -> Test:
    return lambda data: data[:4] in containers and data[8:12] == content


def _is_bmp(data: bytes) -> bool:
    # "BM" also begins words, so the size of the second header has to make sense as well.
    return data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADER_BYTES


def _brands(data: bytes) -> set[bytes]:
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4], "big"), _BRANDS_END)
    return {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}


def _branded(*brands: bytes) -> Test:
    return lambda data: not _brands(data).isdisjoint(brands)


def _is_flac(data: bytes) -> bool:
    return data.startswith(b"fLaC", id3_bytes(data))


def _is_mp3(data: bytes) -> bool:
    is_layer_3 = data[:1] == b"\xff" and data[1:2] and data[1] & 0xE6 == 0xE2
    return data.startswith(b"ID3") or bool(is_layer_3)


def _lacks(end: bytes, data: bytes) -> bool:
    return end not in data


def _lacks_boxes(data: bytes) -> bool:
    return not {b"meta", b"mdat"} <= {name for name, _, _ in boxes(data)}


_image = partial(MediaFormat, media="image", package="pillow")
_clip = partial(MediaFormat, media="audio", package="soundfile", extra="audio")
FORMATS: tuple[MediaFormat, ...] = (
    _image(
        name="JPEG",
        suffixes=("jpg", "jpeg"),
        rare_suffixes=("jpe", "jfif"),
        fits=_magic(b"\xff\xd8\xff"),
        begins="ff d8 ff",
        reader_names=("JPEG",),
        is_cut=partial(_lacks, b"\xff\xd9"),
    ),
    _image(
        name="PNG",
        suffixes=("png",),
        fits=_magic(b"\x89PNG\r\n\x1a\n"),
        begins="89 50 4e 47",
        reader_names=("PNG",),
        is_cut=partial(_lacks, b"IEND"),
    ),
    _image(
        name="WebP",
        suffixes=("webp",),
        fits=_riff(b"WEBP", b"RIFF"),
        begins="RIFF and WEBP",
        reader_names=("WEBP",),
        is_cut=lambda data: len(data) < 8 + int.from_bytes(data[4:8], "little"),
    ),
    _image(
        name="GIF",
        suffixes=("gif",),
        fits=_magic(b"GIF87a", b"GIF89a"),
        begins="GIF8",
        reader_names=("GIF",),
        is_cut=lambda data: not data.endswith(b";"),
    ),
    _image(
        name="BMP",
        suffixes=("bmp",),
        fits=_is_bmp,
        reader_names=("BMP",),
        is_cut=lambda data: len(data) < int.from_bytes(data[2:6], "little"),
    ),
    _image(  # of which a check has proved before that it is whole
        name="TIFF",
        suffixes=("tif", "tiff"),
        fits=_magic(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
        reader_names=("TIFF",),
    ),
    _image(
        name="AVIF",
        suffixes=("avif",),
        fits=_branded(b"avif", b"avis"),
        reader_names=("AVIF",),
        is_cut=_lacks_boxes,
    ),
    _image(
        name="HEIC",
        suffixes=("heic", "heif"),
        fits=_branded(
            *(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"),
            *(b"mif1", b"msf1"),
        ),
        reader_names=("HEIF",),
        package="pillow-heif",
        extra="heif",
        is_cut=_lacks_boxes,
    ),
    _clip(
        name="WAV",
        suffixes=("wav",),
        fits=_riff(b"WAVE", b"RIFF", b"RF64"),
        begins="RIFF and WAVE",
        reader_names=("WAV", "WAVEX", "RF64"),
    ),
    _clip(name="FLAC", suffixes=("flac",), fits=_is_flac, begins="fLaC", reader_names=("FLAC",)),
    _clip(name="MP3", suffixes=("mp3",), fits=_is_mp3, reader_names=("MP3",)),
    _clip(
        name="Ogg",
        suffixes=("ogg", "opus", "oga"),
        fits=_magic(b"OggS"),
        begins="OggS",
        reader_names=("OGG",),
    ),
)
"""In the order in which a file is tested, and in which a row of a tar takes one of several."""


class Encoded(NamedTuple):
    """A kind of files, each of which is the input of a row and is decoded."""

    name: str
    """The registered name of the input; fields of the job begin with it, as `image_column`."""
    what: str
    """Several of them, for messages."""
    fields: pa.Schema
    """What sources of them yield."""
    has_look: bool = True
    """Whether a page can show one."""

    @property
    def formats(self) -> tuple[MediaFormat, ...]:
        """Return the formats that are decoded."""
        return tuple(row for row in FORMATS if row.media == self.name)

    @property
    def extensions(self) -> tuple[str, ...]:
        """Return the suffixes of their names; of several members of a tar the first is taken."""
        usual = [suffix for row in self.formats for suffix in row.suffixes]
        return (*usual, *(suffix for row in self.formats for suffix in row.rare_suffixes))


ENCODED: Mapping[str, Encoded] = {
    "image": Encoded("image", "images", IMAGE_FIELDS),
    "audio": Encoded("audio", "clips of sound", AUDIO_FIELDS, has_look=False),
}
DECODERS = tuple(dict.fromkeys(row.package for row in FORMATS))
"""The distributions that decode images and sound."""


def media_format(media: str, data: bytes) -> MediaFormat | None:
    """Return the format of an image or clip by its first bytes; None if it is not decoded.

    Args:
        media: A key of `ENCODED`.
    """
    return next((row for row in FORMATS if row.media == media and row.fits(data)), None)


def accepted_images() -> str:
    """Name the formats of images that are decoded: `JPEG, PNG and, with the extra heif, HEIC`."""
    rows = ENCODED["image"].formats
    usual = [row.name for row in rows if not row.extra]
    extra = [f"with the extra {row.extra}, {row.name}" for row in rows if row.extra]
    return " and, ".join([", ".join(usual), *extra])


_REFUSED_IMAGES: Mapping[bytes, str] = {
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"8BPS": "Photoshop",
    b"qoif": "QOI",
    b"DDS ": "DDS",
    b"v/1\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance",
    b"FUJIFILMCCD-RAW": "camera raw",
    b"IIU\0": "camera raw",
    b"IIRO": "camera raw",
    b"\0\0\1\0": "Windows icon",
    b"%PDF-": "PDF",
    b"%!PS": "PostScript",
    b"<svg": "SVG",
}
_REFUSED_CLIPS: Mapping[bytes, str] = {
    b"FORM": "AIFF",
    b"caff": "CAF",
    b".snd": "AU",
    b"#!AM": "AMR",
    b"\x30\x26\xb2\x75": "WMA",
    b"\x1a\x45\xdf\xa3": "Matroska or WebM",
}


def refused_image(data: bytes) -> str | None:
    """Return the name of the format of an image that is not decoded; None if it is unknown."""
    for magic, name in _REFUSED_IMAGES.items():
        if data.startswith(magic):
            return name
    if data.startswith(b"P") and data[1:2] in b"123456" and data[2:3] in b"\n\r\t ":
        return "a portable pixmap"
    if data[128:132] == b"DICM":
        return "DICOM"
    if data[4:8] == b"ftyp":
        return "camera raw" if b"crx " in _brands(data) else "a video"
    start = data[:_SVG_WITHIN].removeprefix(b"\xef\xbb\xbf").lstrip()
    return "SVG" if start.startswith((b"<?xml", b"<!--", b"<svg")) and b"<svg" in start else None


def refused_clip(data: bytes) -> str | None:
    """Return the name of the container of a clip that is not decoded; None if it is unknown."""
    return "MP4 (AAC)" if data[4:8] == b"ftyp" else _REFUSED_CLIPS.get(data[:4])
