"""Compressed shards: what is before damage is there, whatever is asked for at once."""

from __future__ import annotations

import gzip
import io
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.inputs.jsonl_shards import CODECS, zstd
from support.runs.selection import examples

from pipeline.sources.whole_file import Broken, opened

DICE = random.Random(5)
CONTENT = b"".join(b'{"t": "%s"}\n' % DICE.randbytes(40).hex().encode() for _ in range(4000))
"""360 kB: several blocks of zstd, several pieces of what is read at once."""
PACKED = {codec: CODECS[f".jsonl.{codec}"](CONTENT) for codec in ("gz", "zst")}


def inflated(data: bytes, num_bytes: int = 2**18) -> tuple[bytes, str]:
    """The content before damage, and what is damaged."""
    read, pieces = opened(io.BytesIO(data)).read, []
    try:
        while piece := read(num_bytes):
            assert len(piece) <= num_bytes
            pieces.append(piece)
    except Broken as error:
        return b"".join(pieces), str(error)
    return b"".join(pieces), ""


@pytest.mark.parametrize("codec", ["gz", "zst"])
@pytest.mark.parametrize("num_bytes", [1000, 2**18, 2**22])
def test_members_and_frames_are_read_one_after_the_other(codec: str, num_bytes: int):
    assert inflated(PACKED[codec], num_bytes) == (CONTENT, "")
    assert inflated(PACKED[codec] * 3, num_bytes) == (CONTENT * 3, "")
    assert inflated(CODECS[f".jsonl.{codec}"](b""), num_bytes) == (b"", "")


@pytest.mark.parametrize("num_zeros", [1, 512, 200_000])
def test_zeros_behind_a_gzip_are_no_damage(num_zeros: int):
    padded = PACKED["gz"] + bytes(num_zeros)
    assert inflated(padded) == (CONTENT, "")
    assert inflated(padded + gzip.compress(b"more")) == (CONTENT + b"more", "")


@pytest.mark.parametrize("rest", [b"x", b"\x1f", b"\0\0garbage", b"garbage" * 9999])
def test_other_bytes_behind_a_gzip_are_damage_behind_all_of_its_content(rest: bytes):
    for content, packed in ((CONTENT, PACKED["gz"]), (b"", gzip.compress(b""))):
        inflated_bytes, why = inflated(packed + rest)
        assert inflated_bytes == content
        assert "Not a gzipped file" in why


@pytest.mark.parametrize("place", [-1, -5], ids=["length", "checksum"])
def test_content_whose_checksum_is_wrong_is_damaged_at_its_end(place: int):
    data = bytearray(PACKED["gz"])
    data[place] ^= 1
    content, why = inflated(bytes(data))
    assert len(CONTENT) - 2**16 <= len(content)
    assert "check failed" in why or "Incorrect length" in why


@examples(60)
@given(data=st.data())
@pytest.mark.parametrize("codec", ["gz", "zst"])
def test_all_that_is_before_damage_is_read_at_any_pace(codec: str, data: st.DataObject):
    packed = bytearray(PACKED[codec])
    place = data.draw(st.integers(20, len(packed) - 1))
    if data.draw(st.booleans()):
        del packed[place:]
    else:
        packed[place : place + 8] = b"\xff" * len(packed[place : place + 8])
    content, why = inflated(bytes(packed))
    if len(packed) < len(PACKED[codec]):
        assert CONTENT.startswith(content)
        assert why
    assert inflated(bytes(packed), data.draw(st.sampled_from([1000, 70_001]))) == (content, why)
    ratio = len(CONTENT) / len(PACKED[codec])
    # A block of input, and what a decoder collects before it gives any.
    assert len(content) >= ratio * (place - 2**16) - 2**17


@pytest.mark.parametrize("number", range(16))
def test_a_zstd_may_begin_with_a_frame_without_content(number: int):
    frame = struct.pack("<II", 0x184D2A50 + number, 5) + b"about"
    assert inflated(frame + zstd(b"content")) == (b"content", "")
    assert inflated(frame * 2 + zstd(b"a") + frame + zstd(b"b") + frame) == (b"ab", "")
