"""Tell from its markers whether a JPEG is complete and of the plainest kind; nothing is decoded.

A GPU must decode what libjpeg decodes, but nvJPEG fills missing data and accepts tables that
libjpeg refuses. So this check is stricter than either. A JPEG that it rejects is not an error:
libjpeg decodes it or finds the reason. As with libjpeg, damage inside the entropy-coded data is not
found.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

_SOF_BASELINE, _SOF_PROGRESSIVE = 0xC0, 0xC2
_DHT, _EOI, _SOS, _DQT, _DRI, _ADOBE, _COM = 0xC4, 0xD9, 0xDA, 0xDB, 0xDD, 0xEE, 0xFE
_APPLICATION, _JFIF = range(0xE0, 0xF0), 0xE0
_JFIF_BYTES = 14
_LUMA_SAMPLINGS = (0x11, 0x21, 0x12, 0x22, 0x41)
"""Luma sampling of 4:4:4, 4:2:2, 4:4:0, 4:2:0 and 4:1:1, with chroma 1 x 1."""
_RGB_IDS = tuple(b"RGB")
_BLOCK = 64
_MARKER_IN_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""Neither a stuffed zero nor a restart ends a scan."""


class Plain(NamedTuple):
    """The header of a plain JPEG."""

    size_px: tuple[int, int]
    """Width and height as stored."""
    is_bare: bool
    """Whether nothing in it can say that it is to be turned: it has no segments of applications but
    the usual one of JFIF."""


def plain_header(data: bytes) -> Plain | None:
    """Return the header of a JPEG that runs from its first marker to its end, in YCbCr, 8 bits,
    Huffman coded; None for any other.

    Args:
        data: Begins with the magic bytes of a JPEG.
    """
    skeleton = _Skeleton()
    try:
        is_whole = _walk(data, skeleton) and skeleton.is_complete()
    except (IndexError, ValueError):  # it ends early or contradicts itself
        return None
    return Plain(skeleton.size_px, skeleton.is_bare) if is_whole else None


def _walk(data: bytes, skeleton: _Skeleton) -> bool:
    """Walk the markers; True if the end marker is reached."""
    position = 2
    while True:
        if data[position] != 0xFF:
            return False
        while data[position] == 0xFF:
            position += 1
        marker = data[position]
        position += 1
        if marker == _EOI:
            return True
        size = int.from_bytes(data[position : position + 2])
        body = data[position + 2 : position + size]
        if size < 2 or len(body) != size - 2 or not skeleton.takes(marker, body):
            return False
        position += size
        if marker == _SOS:
            found = _MARKER_IN_SCAN.search(data, position)
            if found is None:
                return False
            position = found.start()


@dataclass
class _Skeleton:
    """The content of the segments before a scan."""

    size_px: tuple[int, int] = (0, 0)
    is_bare: bool = True
    components: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Id -> sampling and quantisation table; empty before the frame."""
    is_progressive: bool = False
    quantisations: set[int] = field(default_factory=set)
    codes: set[int] = field(default_factory=set)
    """Huffman tables: 0x00 to 0x03 for DC, 0x10 to 0x13 for AC."""
    scanned: set[int] = field(default_factory=set)

    def is_complete(self) -> bool:
        return bool(self.components) and self.scanned == set(self.components)

    def takes(self, marker: int, body: bytes) -> bool:
        """Read one segment; False if only libjpeg may decode the image."""
        if marker in (_SOF_BASELINE, _SOF_PROGRESSIVE):
            self.is_progressive = marker == _SOF_PROGRESSIVE
            return self._takes_frame(body)
        if marker == _DHT:
            return self._takes_codes(body)
        if marker == _DQT:
            return self._takes_quantisations(body)
        if marker == _SOS:
            return self._takes_scan(body)
        if marker == _DRI:
            return len(body) == 2
        if marker in _APPLICATION:
            is_jfif = marker == _JFIF and body[:5] == b"JFIF\0" and len(body) == _JFIF_BYTES
            self.is_bare &= is_jfif
        if marker == _ADOBE and body.startswith(b"Adobe"):
            return len(body) >= 12 and body[11] == 1  # YCbCr
        return marker in _APPLICATION or marker == _COM

    def _takes_frame(self, body: bytes) -> bool:
        if self.components or len(body) != 15 or body[0] != 8 or body[5] != 3:
            return False
        height_px, width_px = int.from_bytes(body[1:3]), int.from_bytes(body[3:5])
        self.size_px = width_px, height_px
        parts = [body[first : first + 3] for first in (6, 9, 12)]
        self.components = {part[0]: (part[1], part[2]) for part in parts}
        luma, *chroma = [part[1] for part in parts]
        return (
            min(height_px, width_px) > 0
            and len(self.components) == 3
            and tuple(self.components) != _RGB_IDS
            and luma in _LUMA_SAMPLINGS
            and chroma == [0x11, 0x11]
        )

    def _takes_quantisations(self, body: bytes) -> bool:
        while body:
            if body[0] > 3 or len(body) < 1 + _BLOCK:  # above: 16 bits
                return False
            self.quantisations.add(body[0])
            body = body[1 + _BLOCK :]
        return True

    def _takes_codes(self, body: bytes) -> bool:
        while body:
            kind, counts = body[0], body[1:17]
            symbols = body[17 : 17 + sum(counts)]
            if kind & ~0x13 or len(counts) != 16 or len(symbols) != sum(counts) or not symbols:
                return False
            if not _are_codes(counts) or (kind < 0x10 and max(symbols) > 11):
                return False
            self.codes.add(kind)
            body = body[17 + len(symbols) :]
        return True

    def _takes_scan(self, body: bytes) -> bool:
        number = body[0]
        if number not in (1, 2, 3) or len(body) != 4 + 2 * number:
            return False
        tables = {body[1 + 2 * i]: body[2 + 2 * i] for i in range(number)}
        first, last, steps = body[-3:]
        high, low = steps >> 4, steps & 15
        if len(tables) != number or not tables.keys() <= self.components.keys():
            return False
        if any(self.components[part][1] not in self.quantisations for part in tables):
            return False
        is_first = not self.scanned
        self.scanned |= tables.keys()
        needs_dc, needs_ac = True, True
        if self.is_progressive:
            is_range = first == last == 0 or (number == 1 and 0 < first <= last < _BLOCK)
            if not is_range or (high and low != high - 1) or low > 13:
                return False
            needs_dc, needs_ac = first == 0 and high == 0, first > 0
        elif (first, last, steps) != (0, _BLOCK - 1, 0) or number != 3 or not is_first:
            return False
        dc = {0x00 | pair >> 4 for pair in tables.values()} if needs_dc else set()
        ac = {0x10 | pair & 15 for pair in tables.values()} if needs_ac else set()
        return dc | ac <= self.codes


def _are_codes(counts: bytes) -> bool:
    """Tell whether so many codes of 1 to 16 bits exist, none of them a prefix or all ones."""
    code = 0
    for bits, count in enumerate(counts, 1):
        code += count
        if count and code >= 1 << bits:
            return False
        code <<= 1
    return True
