"""Decode a clip of sound: bytes of WAV, FLAC, MP3 or Ogg become float32 samples, or a reason.

libsndfile decodes in blocks (Ogg: Vorbis and Opus), and each block becomes the mean of its
channels, so the header's channels, rate and length do not decide how much memory is used. A clip
that is too long is refused by its header, or else where it passes the limit. soxr changes rates, at
quality HQ.

Also detected: a file that ends before its header says, joined files (libsndfile decodes the first
one only), and samples that are not finite. Not detected: changed bytes in a WAV and most in an MP3;
an Ogg cut between two pages; an MP3 without a tag, or a FLAC of unknown length, cut between two
frames.

libmpg123 decodes as many frames of an MP3 as its tag Xing or Info counts. Without a tag it guesses
their number from the size of the first frame, and omits the last frames where sizes vary. So frames
are counted here, and an MP3 without a count gets a tag.
"""

from __future__ import annotations

import io
import math
import re
import struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.core.failures import Reason, RowError
from pipeline.core.media import ENCODED, MediaFormat, id3_bytes, media_format, refused_clip
from pipeline.process.liveness import still_alive

Samples = npt.NDArray[np.float32]
_CONVERT = "convert it: ffmpeg -i IN OUT.flac"
_BLOCK_VALUES = 1 << 20
_RATES_HZ = range(1_000, 768_001)
_UNKNOWN_FRAMES = 1 << 62
"""From this number of frames on, a header means an unknown length."""
_STREAMED_BYTES = 0x7FFF_0000
"""From this size of the data on, a WAV was written without knowing its size, as to a pipe."""

_OF_WHOLE_BYTES = frozenset([1, 3, 6, 7, 0xFFFE])
"""Formats of a WAV with whole bytes per sample: PCM, floats, A-law, mu-law, and extensible ones."""
_FORMAT = struct.Struct("<HH8xHH8xH")
_MAX_CHUNKS = 1_000
"""Most chunks of a WAV; libsndfile takes a second for 100,000."""
_BEGINS = {
    "FLAC": re.compile(rb"fLaC[\x00\x80]\x00\x00\x22"),
    "Ogg": re.compile(rb"OggS\x00[\x02\x03\x06\x07]"),
}
"""How a stream begins: the marker and the first block's header, or a page with its flags."""
_END_SAMPLES = 2 * 1152
"""Samples of two frames of an MP3, which some encoders count in the tag but do not write."""


_KBPS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBPS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_MP3_RATES_HZ = {
    3: (44_100, 48_000, 32_000),
    2: (22_050, 24_000, 16_000),
    0: (11_025, 12_000, 8_000),
}
"""Version bits -> rates; 3 is MPEG 1."""
_MP3_HEADER = re.compile(
    rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][%s]"
    % b"".join(b"\\x%02x" % byte for byte in range(0x10, 0xF0) if byte & 0x0C != 0x0C)
)
"""Header of a frame of layer III with a known rate and bitrate."""
_TAG_BITRATE = 0x80
"""Gives a frame of at least 192 bytes."""


class Undecodable(RowError):
    """These bytes are not a clip of an accepted format within the limits."""


class Clip(NamedTuple):
    """A decoded clip."""

    samples: Samples
    """float32 (T,): the mean of the channels."""
    rate_hz: int

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.rate_hz


def decode_clip(data: bytes, max_bytes: int, max_s: float) -> Clip:
    """Decode a clip.

    Args:
        data: The encoded clip.
        max_bytes: Its limit.
        max_s: Limit of the decoded clip.

    Raises:
        Undecodable: The bytes are not a whole clip of an accepted format within the limits.
    """
    import soundfile

    if not data:
        raise Undecodable(Reason.EMPTY, "the clip has 0 bytes")
    if len(data) > max_bytes:
        message = f"the clip has {len(data)} bytes, allowed are {max_bytes}"
        raise Undecodable(Reason.TOO_LARGE, message)
    row = identified(data)
    container = row.name
    if container == "FLAC":
        data = data[id3_bytes(data) :]
    data = _unpadded(data) if container == "WAV" else data
    check_whole(container, data)
    if container == "MP3":
        data = _counted_mp3(data)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.format not in row.reader_names:
                message = f"begins like {container} and is {file.format}; {_CONVERT}"
                raise Undecodable(Reason.UNSUPPORTED_FORMAT, message)
            file.seekable = lambda: False  # soundfile seeks, where a FLAC of unknown length cannot
            return _read(file, container, max_s)
    except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
        cause = str(error).rpartition(": ")[2] or type(error).__name__
        if "does not exist" in cause:  # what libsndfile says of a stream that it cannot begin with
            cause = "the header cannot be read"
        message = f"{container} of {len(data)} bytes: {cause}"
        raise Undecodable(Reason.DECODE_ERROR, message) from error


def identified(data: bytes) -> MediaFormat:
    """Return the format of a clip by its first bytes.

    Raises:
        Undecodable: It is not decoded, or unknown.
    """
    if row := media_format("audio", data):
        return row
    if name := refused_clip(data):
        raise Undecodable(Reason.UNSUPPORTED_FORMAT, f"is {name}; {_CONVERT}")
    *names, last = (row.name for row in ENCODED["audio"].formats)
    message = f"begins with {data[:8].hex(' ')}: neither {', '.join(names)} nor {last}"
    raise Undecodable(Reason.UNIDENTIFIED, message)


def check_whole(container: str, data: bytes) -> None:
    """Check for damage that the decoder would take for the end of a shorter clip.

    Raises:
        Undecodable: A WAV or Ogg ends within its last chunk or page, or a FLAC or Ogg has a second
            stream.
    """
    missing = {"WAV": _missing_of_wav, "Ogg": _missing_of_ogg}.get(container, lambda _: 0)(data)
    if missing > 0:
        message = f"{container} of {len(data)} bytes: {missing} bytes are missing at its end"
        raise Undecodable(Reason.TRUNCATED, message)
    if container in _BEGINS and len(_BEGINS[container].findall(data)) > 1:
        raise _joined(container, "a second stream begins within it")


def _joined(container: str, why: str) -> Undecodable:
    return Undecodable(
        Reason.UNSUPPORTED_FORMAT,
        f"{container}: {why}, as in files that are joined, of which only the first would be "
        f"decoded; {_CONVERT}",
    )


def _counted_mp3(data: bytes) -> bytes:
    mp3 = with_frame_count(data)
    if not mp3.num_frames:
        message = f"MP3 of {len(data)} bytes: has no frames, or frames of free bitrate; {_CONVERT}"
        raise Undecodable(Reason.UNSUPPORTED_FORMAT, message)
    if mp3.num_frames > mp3.num_declared:
        raise _joined("MP3", f"its tag says {mp3.num_declared} frames, it has {mp3.num_frames}")
    return mp3.data


def _missing_of_wav(data: bytes) -> int:
    at = 12
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            return at + 8 - len(data)
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"fmt ":
            _require_blocks(data[at + 8 : at + 24], len(data))
        if data[at : at + 4] == b"data":
            return at + 8 + size - len(data) if size < _STREAMED_BYTES else 0
        at += 8 + size + size % 2
    message = f"WAV of {len(data)} bytes: more than {_MAX_CHUNKS} chunks before its samples"
    raise Undecodable(Reason.UNSUPPORTED_FORMAT, f"{message}; {_CONVERT}")


def _unpadded(data: bytes) -> bytes:
    """Return a WAV of integers padded to 32 bits with a header that says 32 bits.

    Only in extensible headers, as others may be Cool Edit's floats "of 24 bits".
    """
    at = data.find(b"fmt ", 12) + 8
    form, channels, block, bits, subformat = _FORMAT.unpack(data[at : at + 26].ljust(26))
    if (form, subformat) == (0xFFFE, 1) and block == 4 * channels and bits in (20, 24):
        return data[: at + 14] + b"\x20" + data[at + 15 :]
    return data


def _require_blocks(header: bytes, num_bytes: int) -> None:
    """Refuse a WAV whose header contradicts itself about the bytes of a sample.

    Raises:
        Undecodable: libsndfile would decode noise.
    """
    if len(header) < 16:
        return  # libsndfile refuses it
    form, channels, _, _, block, bits = struct.unpack("<HHIIHH", header)
    if form in _OF_WHOLE_BYTES and block != channels * -(-bits // 8):
        message = f"WAV of {num_bytes} bytes: {channels} channels of {bits} bits in {block} bytes"
        raise Undecodable(Reason.DECODE_ERROR, f"{message}: its header contradicts itself")


def _missing_of_ogg(data: bytes) -> int:
    at = data.rfind(b"OggS")
    if at + 27 > len(data):
        return at + 27 - len(data)
    body = at + 27 + data[at + 26]
    return body + sum(data[at + 27 : body]) - len(data)


def _read(file: Any, container: str, max_s: float) -> Clip:
    """Read an open file.

    Raises:
        Undecodable: As `decode_clip`.
    """
    rate, declared = file.samplerate, file.frames
    if rate not in _RATES_HZ:
        raise Undecodable(
            Reason.UNSUPPORTED_FORMAT,
            f"the header says {rate} samples a second, expected {_RATES_HZ[0]} to {_RATES_HZ[-1]}",
        )
    most, is_known = math.floor(max_s * rate), declared < _UNKNOWN_FRAMES
    if is_known and declared > most:
        raise _too_long(f"the header says {declared / rate:.1f} s", max_s)
    blocks: list[Samples] = []
    num_read, step = 0, max(1, _BLOCK_VALUES // file.channels)
    while num_read <= most:
        still_alive()
        block = file.read(step, dtype="float32", always_2d=True)
        if not len(block):
            break
        blocks.append(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1))
        num_read += len(block)
    if num_read > most:
        raise _too_long(f"the clip has more than {most / rate:.1f} s", max_s)
    if is_known and num_read < declared - (_END_SAMPLES if container == "MP3" else 0):
        raise Undecodable(
            Reason.TRUNCATED,
            f"{container}: the header says {declared} samples, {num_read} could be decoded",
        )
    if not num_read:
        raise Undecodable(Reason.EMPTY, "the clip has no samples")
    samples = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    if not np.isfinite(samples).all():
        raise Undecodable(
            Reason.DECODE_ERROR, f"{container}: has samples that are no finite numbers"
        )
    return Clip(np.ascontiguousarray(samples), rate)


def _too_long(what: str, max_s: float) -> Undecodable:
    return Undecodable(
        Reason.TOO_LARGE,
        f"{what}, allowed are {max_s:g} (audio.max_s); cut it into pieces: ffmpeg -i IN -f segment "
        f"-segment_time {max_s:g} OUT_%04d.wav",
    )


def resampled(clip: Clip, rate_hz: int) -> Samples:
    """Return the samples of a clip at another rate, float32 (T * rate_hz / clip.rate_hz,)."""
    if clip.rate_hz == rate_hz:
        return clip.samples
    import soxr

    samples: Samples = soxr.resample(clip.samples, clip.rate_hz, rate_hz, quality="HQ")
    return samples


class Mp3(NamedTuple):
    """An MP3 with a tag that counts its frames."""

    data: bytes
    num_frames: int
    """0 if they cannot be counted, as their header lacks their size."""
    num_declared: int
    """Frames by the tag."""


def with_frame_count(data: bytes) -> Mp3:
    """Return an MP3 with its own tag if that counts the frames, otherwise with a new tag.

    ID3 tags are removed, as libsndfile takes a file with two of them for another format.
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
    """Return the bytes of the frame of layer III at this place; 0 if there is none."""
    if at + 4 > len(data) or not _MP3_HEADER.match(data, at):
        return 0
    version, bitrate, rate = data[at + 1] >> 3 & 3, data[at + 2] >> 4, data[at + 2] >> 2 & 3
    kbps, factor = (_KBPS_1, 144_000) if version == 3 else (_KBPS_2, 72_000)
    return factor * kbps[bitrate] // _MP3_RATES_HZ[version][rate] + (data[at + 2] >> 1 & 1)


def _next_frame(data: bytes, at: int, *, is_first: bool = False) -> int:
    """Return where the next three consecutive frames begin, -1 if nowhere.

    The first frames of a short clip may be fewer.
    """
    for match in _MP3_HEADER.finditer(data, at):
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
    """Return a frame whose tag counts the frames of the stream that begins at this place."""
    version, channels = data[at + 1] | 1, data[at + 3]
    header = bytes([0xFF, version, data[at + 2] & 0x0C | _TAG_BITRATE, channels])
    side_bytes = (17, 9) if version >> 3 & 3 != 3 else (32, 17)
    body = bytes(side_bytes[channels >> 6 == 3]) + b"Xing" + (1).to_bytes(4, "big")
    frame = header + body + num_frames.to_bytes(4, "big")
    return frame.ljust(_size(header, 0), b"\0")
