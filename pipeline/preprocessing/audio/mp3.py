"""Count the frames of an MP3, which its decoder takes from a tag, or guesses.

libmpg123 decodes as many frames as the tag Xing or Info says. Without one it guesses their number
from the bytes of the first: of frames of different sizes it leaves out the last ones.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pipeline.core.media import id3_bytes

_KBPS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBPS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
"""Bits of the version -> rates; 3 is MPEG 1."""
_HEADER = re.compile(
    rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][%s]"
    % b"".join(b"\\x%02x" % byte for byte in range(0x10, 0xF0) if byte & 0x0C != 0x0C)
)
"""How a frame of layer III begins whose rate and bitrate are said."""
_TAG_BITRATE = 0x80
"""Makes a frame of 192 bytes or more."""


class Mp3(NamedTuple):
    """An MP3 with a tag that counts its frames."""

    data: bytes
    num_frames: int
    """0 if they cannot be counted: their header does not say their size."""
    num_declared: int
    """What the tag says."""


def counted(data: bytes) -> Mp3:
    """Return an MP3 with its own tag, if that counts the frames, otherwise with one that does.

    Its tags ID3 are left out: libsndfile takes two for another format.
    """
    first = _next_frame(data, id3_bytes(data), is_first=True)
    if first < 0:
        return Mp3(data, 0, 0)
    begin, num_declared = first, 0
    tag = max(data.find(name, first, first + 48) for name in (b"Xing", b"Info"))
    if tag > 0:
        begin += _size(data, first)
        if data[tag + 7 : tag + 8] and data[tag + 7] & 1:
            num_declared = int.from_bytes(data[tag + 8 : tag + 12], "big")
    num_frames = _count(data, begin)
    if num_declared:
        return Mp3(data[first:], num_frames, num_declared)
    return Mp3(_tag(data, first, num_frames) + data[begin:], num_frames, num_frames)


def _size(data: bytes, at: int) -> int:
    """Return the bytes of the frame of layer III that begins here, or 0."""
    if at + 4 > len(data) or not _HEADER.match(data, at):
        return 0
    version, bitrate, rate = data[at + 1] >> 3 & 3, data[at + 2] >> 4, data[at + 2] >> 2 & 3
    kbps, factor = (_KBPS_1, 144_000) if version == 3 else (_KBPS_2, 72_000)
    return factor * kbps[bitrate] // _RATES_HZ[version][rate] + (data[at + 2] >> 1 & 1)


def _next_frame(data: bytes, at: int, *, is_first: bool = False) -> int:
    """Return where the next three frames in a row begin, -1 if none do.

    Of a short clip, which has fewer, the first frames may be the last ones.
    """
    for match in _HEADER.finditer(data, at):
        end, num_frames = match.start(), 0
        while num_frames < 3 and (size := _size(data, end)):
            end, num_frames = end + size, num_frames + 1
        if num_frames == 3 or (is_first and num_frames and end >= len(data)):
            return match.start()
    return -1


def _count(data: bytes, at: int) -> int:
    num_frames = 0
    while at >= 0:
        while size := _size(data, at):
            at, num_frames = at + size, num_frames + 1
        at = _next_frame(data, at)
    return num_frames


def _tag(data: bytes, at: int, num_frames: int) -> bytes:
    """Return a frame that counts those of a stream, which begins here."""
    version, channels = data[at + 1] | 1, data[at + 3]
    header = bytes([0xFF, version, data[at + 2] & 0x0C | _TAG_BITRATE, channels])
    side_bytes = (17, 9) if version >> 3 & 3 != 3 else (32, 17)
    body = bytes(side_bytes[channels >> 6 == 3]) + b"Xing" + (1).to_bytes(4, "big")
    frame = header + body + num_frames.to_bytes(4, "big")
    return frame.ljust(_size(header, 0), b"\0")
