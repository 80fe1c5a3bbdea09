"""Test that clips become the samples that they hold, or a reason, whatever their headers say."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from support.inputs.clips import RATE_HZ, encoded, tone

from pipeline.core.failures import Reason
from pipeline.preprocessing.audio.decode_clip import (
    Clip,
    Undecodable,
    _read,
    decode_clip,
    resampled,
)

MAX_BYTES, MAX_S = 10**6, 2.0
KINDS = {
    "wav": {"format_name": "WAV"},
    "wav of floats": {"format_name": "WAV", "subtype": "FLOAT"},
    "wav of 24 bits": {"format_name": "WAV", "subtype": "PCM_24"},
    "wav of another header": {"format_name": "WAVEX"},
    "flac": {"format_name": "FLAC"},
    "mp3": {"format_name": "MP3"},
    "vorbis": {"format_name": "OGG", "subtype": "VORBIS"},
    "opus": {"format_name": "OGG", "subtype": "OPUS"},
}
LOSSY = ("mp3", "vorbis", "opus")


def refusal(data: bytes, max_bytes: int = MAX_BYTES) -> tuple[Reason, str]:
    with pytest.raises(Undecodable) as caught:
        decode_clip(data, max_bytes, MAX_S)
    assert "\n" not in caught.value.message
    return caught.value.reason, caught.value.message


@pytest.mark.parametrize("encoding", KINDS)
def test_a_clip_becomes_its_samples(encoding: str):
    samples = tone(1.0)
    clip = decode_clip(encoded(samples, **KINDS[encoding]), MAX_BYTES, MAX_S)
    assert clip.rate_hz == RATE_HZ
    assert clip.samples.dtype == np.float32
    assert clip.duration_s == pytest.approx(1.0, abs=0.1 if encoding == "mp3" else 1e-6)
    if encoding not in LOSSY:
        assert np.abs(clip.samples - samples).max() < 1e-4
    else:
        assert np.abs(clip.samples).max() == pytest.approx(np.abs(samples).max(), rel=0.3)


@pytest.mark.parametrize("bits", [20, 24])
@pytest.mark.parametrize("num_channels", [1, 2])
@pytest.mark.parametrize("before", [b"", b"JUNK\4\0\0\0abcd"])
def test_integers_padded_to_containers_are_read_if_the_header_is_extensible(
    bits: int, num_channels: int, before: bytes
):
    samples = np.column_stack([tone(1.0)] * num_channels)
    plain, extensible = (
        encoded(samples, name, subtype="PCM_32").replace(
            struct.pack("<HH", 4 * num_channels, 32), struct.pack("<HH", 4 * num_channels, bits), 1
        )
        for name in ("WAV", "WAVEX")
    )
    clip = decode_clip(extensible[:12] + before + extensible[12:], MAX_BYTES, MAX_S)
    assert len(clip.samples) == len(samples)
    assert np.abs(clip.samples - samples[:, 0]).max() < 1e-4
    assert refusal(plain)[1].endswith("its header contradicts itself")


def test_channels_become_their_mean():
    left, right = tone(hz=300), tone(hz=500)
    both = np.column_stack([left, right])
    clip = decode_clip(encoded(both, subtype="FLOAT"), MAX_BYTES, MAX_S)
    assert np.array_equal(clip.samples, both.mean(axis=1))


def test_blocks_of_many_channels_join_without_a_seam(monkeypatch: pytest.MonkeyPatch):
    samples = tone(1.0)
    monkeypatch.setattr("pipeline.preprocessing.audio.decode_clip._BLOCK_VALUES", 1_000)
    clip = decode_clip(encoded(samples, subtype="FLOAT"), MAX_BYTES, MAX_S)
    assert np.array_equal(clip.samples, samples)


def test_silence_is_a_clip():
    clip = decode_clip(encoded(np.zeros(800, np.float32)), MAX_BYTES, MAX_S)
    assert not clip.samples.any()


@pytest.mark.parametrize("encoding", KINDS)
def test_a_longer_clip_is_refused_with_the_recipe(encoding: str):
    reason, message = refusal(encoded(tone(2.5), **KINDS[encoding]))
    assert reason is Reason.TOO_LARGE
    assert "allowed are 2 (audio.max_s); cut it into pieces: ffmpeg" in message


@pytest.mark.parametrize("encoding", [name for name in KINDS if name != "mp3"])
def test_a_clip_that_is_cut_is_never_a_shorter_one(encoding: str):
    """At any byte of the last half; pages of Ogg are whole, and so seen only within the last."""
    data = encoded(tone(1.0), **KINDS[encoding])
    first = data.rfind(b"OggS") + 4 if data.startswith(b"OggS") else len(data) // 2
    for end in range(first, len(data), max(1, (len(data) - first) // 20)):
        assert refusal(data[:end])[0] in (Reason.TRUNCATED, Reason.DECODE_ERROR)


class Endless:
    """An open file of silence, as soundfile shows one of unknown length."""

    samplerate, channels, frames = 500_000, 1, 2**62

    def __init__(self) -> None:
        self.num_read = 0

    def read(self, num_frames: int, **_: object) -> object:
        self.num_read += num_frames
        return np.zeros((num_frames if self.num_read < 10**7 else 0, 1), np.float32)


@pytest.mark.parametrize("encoding", [name for name in KINDS if "wav" not in name])
@pytest.mark.parametrize("tag", [b"", b"ID3\4\0\0\0\0\2\0" + bytes(256)])
def test_joined_clips_are_never_their_first_one(encoding: str, tag: bytes):
    one, other = encoded(tone(0.3), **KINDS[encoding]), encoded(tone(0.2, 600.0), **KINDS[encoding])
    reason, message = refusal(one + tag + other)
    assert reason is Reason.UNSUPPORTED_FORMAT
    assert "files that are joined" in message


def test_an_mp3_is_whole_whatever_its_frames_say_of_its_length():
    """Quiet frames are small: by their size, the loud ones behind them would be left out."""
    loud = np.random.default_rng(0).normal(scale=0.3, size=RATE_HZ).astype(np.float32)
    data = encoded(np.concatenate([np.zeros_like(loud), loud]), "MP3")
    with_tag = decode_clip(data, MAX_BYTES, MAX_S)
    assert len(with_tag.samples) == 2 * RATE_HZ

    untagged = data[data.index(b"\xff\xf3", 1) :]  # the tag is the first frame
    pictured = b"ID3\4\0\0\0\0\0\x40" + b"\xff\xd8\xff\xe0" * 16
    pictured = pictured * 2 + untagged + b"TAG" + bytes(125)
    for clip in (decode_clip(data, MAX_BYTES, 3.0) for data in (untagged, pictured)):
        assert 2.0 <= clip.duration_s < 2.2
        begin = len(clip.samples) - RATE_HZ
        assert np.abs(clip.samples[begin + 4000 :]).mean() > 0.05

    cover = data + b"APETAGEX" + b"\xff\xfb\x90\x00" + bytes(range(256)) + b"\xff\xfb\x90\x00.."
    assert np.array_equal(decode_clip(cover, MAX_BYTES, MAX_S).samples, with_tag.samples)
    assert refusal(data[: len(data) // 2])[0] is Reason.TRUNCATED


def test_a_clip_that_passes_the_limit_is_not_read_on():
    """Nothing in its header tells how long it is."""
    file = Endless()
    with pytest.raises(Undecodable, match=r"more than 2\.0 s"):
        _read(file, "Ogg", MAX_S)
    assert file.num_read < 3 * file.samplerate


class Short:
    """An open file that ends 1,000 samples before its header says."""

    samplerate, channels, frames = RATE_HZ, 1, RATE_HZ

    def __init__(self) -> None:
        self.blocks = iter([np.zeros((RATE_HZ - 1_000, 1), np.float32), np.zeros((0, 1))])

    def read(self, num_frames: int, **_: object) -> object:
        return next(self.blocks)


def test_only_an_mp3_may_end_a_little_before_its_header_says():
    assert len(_read(Short(), "MP3", MAX_S).samples) == RATE_HZ - 1_000
    with pytest.raises(Undecodable, match="the header says"):
        _read(Short(), "FLAC", MAX_S)


def test_a_wav_from_a_pipe_does_not_know_its_size():
    data = bytearray(encoded(tone()))
    at = data.index(b"data")
    data[at + 4 : at + 8] = data[4:8] = b"\xff" * 4
    clip = decode_clip(bytes(data), MAX_BYTES, MAX_S)
    assert len(clip.samples) == len(tone())


def test_a_chunk_of_odd_size_is_padded():
    data = encoded(tone())
    more = data[:12] + b"junk\3\0\0\0abc\0" + data[12:]
    samples = [decode_clip(wav, MAX_BYTES, MAX_S).samples for wav in (data, more)]
    assert np.array_equal(*samples)


@pytest.mark.parametrize("tag", [b"", b"ID3\4\0\0\0\0\2\0" + bytes(256)])
def test_a_flac_that_says_no_length_has_all_its_samples(
    tag: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipeline.preprocessing.audio.decode_clip._BLOCK_VALUES", 5_000)
    whole = encoded(tone(1.0), "FLAC")
    samples = decode_clip(2 * tag + of_unknown_length(whole), MAX_BYTES, MAX_S).samples
    assert np.array_equal(samples, decode_clip(whole, MAX_BYTES, MAX_S).samples)
    assert refusal(of_unknown_length(whole)[:-1])[0] is Reason.DECODE_ERROR
    assert refusal(of_unknown_length(encoded(tone(2.5), "FLAC")))[0] is Reason.TOO_LARGE


def of_unknown_length(flac: bytes) -> bytes:
    """Return a FLAC as an encoder writes it into a pipe: it says 0 samples."""
    return flac[:21] + bytes([flac[21] & 0xF0]) + bytes(4) + flac[26:]


def header_says(rate: int = RATE_HZ, channels: int = 1, size: int = 1000, block: int = 2) -> bytes:
    """A WAV of 1,000 bytes of samples whose header says what it likes."""
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * 2 % 2**32, block, 16)
    head = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", len(head) + size) + head + bytes(1000)


def flac_of_hours() -> bytes:
    """A FLAC whose header says 2^36 - 1 samples."""
    data = bytearray(encoded(tone(), "FLAC"))
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4
    return bytes(data)


HOSTILE = {
    "nothing": (b"", Reason.EMPTY, "0 bytes"),
    "no samples": (encoded(np.zeros(0, np.float32)), Reason.EMPTY, "no samples"),
    "a text": (b"<html>404</html>", Reason.UNIDENTIFIED, "3c 68 74 6d 6c"),
    "an MP4": (b"\0\0\0\x20ftypM4A ", Reason.UNSUPPORTED_FORMAT, "MP4"),
    "an AIFF": (encoded(tone(), "AIFF"), Reason.UNSUPPORTED_FORMAT, "ffmpeg -i IN OUT.flac"),
    "a header of 10 hours": (flac_of_hours(), Reason.TOO_LARGE, "s, allowed are 2"),
    "65,535 channels": (header_says(channels=65_535), Reason.DECODE_ERROR, "WAV of"),
    "no channels": (header_says(channels=0), Reason.DECODE_ERROR, "WAV of"),
    "3 channels in the bytes of 4": (
        header_says(channels=3, block=8),
        *(Reason.DECODE_ERROR, "3 channels of 16 bits in 8 bytes"),
    ),
    "2 GHz": (header_says(2_000_000_000), Reason.UNSUPPORTED_FORMAT, "samples a second"),
    "more than there is": (header_says(size=2_000), Reason.TRUNCATED, "1000 bytes are missing"),
    "more chunks than any has": (
        encoded(tone())[:12] + b"junk\0\0\0\0" * 1_000 + encoded(tone())[12:],
        *(Reason.UNSUPPORTED_FORMAT, "more than 1000 chunks before its samples"),
    ),
    "no frames": (b"ID3" + bytes(60), Reason.UNSUPPORTED_FORMAT, "has no frames"),
    "no more than a header": (encoded(tone())[:20], Reason.TRUNCATED, "missing"),
    "samples that are no numbers": (
        encoded(np.array([0.0, np.nan, np.inf], np.float32), subtype="FLOAT"),
        *(Reason.DECODE_ERROR, "no finite numbers"),
    ),
    "other bytes": (b"fLaC" + bytes(range(256)), Reason.DECODE_ERROR, "FLAC of 260 bytes"),
    "other bytes in Ogg": (b"OggS" + bytes(60), Reason.DECODE_ERROR, "Ogg of 64 bytes"),
    "a page that ends behind the file": (b"OggS" + b"\xff" * 60, Reason.TRUNCATED, "missing"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_clip_gets_its_reason(case: str):
    data, reason, expected_message = HOSTILE[case]
    actual_reason, message = refusal(data)
    assert (actual_reason, expected_message in message) == (reason, True), message


def test_a_clip_of_too_many_bytes_is_not_looked_at():
    assert refusal(b"RIFF" * 10, max_bytes=20) == (
        Reason.TOO_LARGE,
        "the clip has 40 bytes, allowed are 20",
    )


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 48_000])
def test_a_clip_of_another_rate_sounds_the_same(rate_hz: int):
    """A tone below all limits is the same tone, but for the ends, where the filter hears less."""
    actual = resampled(Clip(tone(1.0, rate_hz=rate_hz), rate_hz), RATE_HZ)
    wanted, inner = tone(1.0), slice(400, -400)
    assert abs(len(actual) - len(wanted)) <= 1
    assert np.abs(actual[: len(wanted)] - wanted[: len(actual)])[inner].max() < 1e-3
