"""The content of a compressed shard, with all that is before damage, wherever that is.

Decoders take damage of one byte for that of all they were given at once. So where one fails, it is
given the same once more, in ever smaller pieces. The same bytes always give the same content.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol

import pyarrow as pa

from pipeline.core.errors import PipelineError
from pipeline.sources.whole_file import Broken

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"
"""Behind a byte 0x50 to 0x5f: a frame without content, with which a zstd may begin."""
_INPUT_BYTES = 2**16
_STEPS = (1024, 1)
"""Bytes that are asked of a decoder of zstd at once, behind damage; any number before."""


def opened(handle: BinaryIO) -> Callable[[int], bytes]:
    """Return a function that reads up to so many bytes of a file or its content, b'' at the end.

    It raises `Broken` if the next byte of the content is damaged.

    Args:
        handle: The file, at its beginning; must be seekable.
    """
    head = handle.read(4)
    handle.seek(0)
    if head.startswith(_GZIP):
        return _Content("gzip", _Gzip(handle)).read
    is_skippable = head[1:] == _SKIPPABLE and head[0] >> 4 == 5
    if head == _ZSTD or is_skippable:
        return _Content("zstd", _Zstd(handle)).read
    return handle.read


class BrokenBehind(Broken):
    """All of the content was read; what is behind it is none."""


class _Decoder(Protocol):
    damage: str
    """Why nothing follows; '' as long as something may."""
    is_whole: bool
    """Damage is not in the content, but behind it."""

    def some(self, num_bytes: int) -> bytes:
        """Return some of the next bytes, b'' at the end and at damage."""
        ...


class _Content:
    """What a decoder makes of a file, as many bytes at once as are wanted."""

    def __init__(self, codec: str, decoder: _Decoder) -> None:
        self._codec, self._decoder = codec, decoder

    def read(self, num_bytes: int) -> bytes:
        pieces: list[bytes] = []
        left = num_bytes
        while left > 0 and (piece := self._decoder.some(left)):
            pieces.append(piece)
            left -= len(piece)
        if self._decoder.damage and not pieces:
            message = f"damaged {self._codec}: {self._decoder.damage}"
            raise (BrokenBehind if self._decoder.is_whole else Broken)(message)
        return b"".join(pieces)


class _Gzip:
    """Members one after the other. Zeros behind one, with which tapes are filled up, are none."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self._member: Any = None
        self._input = b""
        """What was read and not inflated."""
        self.damage, self.is_whole = "", False

    def some(self, num_bytes: int) -> bytes:
        while not self.damage:
            if self._member is None and not self._begin():
                return b""
            if self._member is not None and (found := self._inflate(num_bytes)):
                return found
        return b""

    def _begin(self) -> bool:
        """Begin the next member, or note damage; tell whether there are bytes at all."""
        while not (rest := self._input.lstrip(b"\0")):
            self._input = self._handle.read(_INPUT_BYTES)
            if not self._input:
                return False
        self._input = rest if len(rest) > 1 else rest + self._handle.read(1)
        if self._input.startswith(_GZIP):
            self._member = zlib.decompressobj(16 + zlib.MAX_WBITS)
        else:
            self.damage, self.is_whole = "other bytes are behind its end", True
        return True

    def _inflate(self, num_bytes: int) -> bytes:
        self._input = self._input or self._handle.read(_INPUT_BYTES)
        is_at_end, before = not self._input, self._member.copy()
        try:
            found: bytes = self._member.decompress(self._input, num_bytes)
        except zlib.error as error:
            self.damage = str(error)
            return _before_damage(before, self._input)
        if self._member.eof:
            self._input, self._member = self._member.unused_data, None
        else:
            self._input = self._member.unconsumed_tail
            if is_at_end and not found:
                self.damage = "it ends too early"
        return found


def _before_damage(member: Any, data: bytes) -> bytes:
    found: list[bytes] = []
    with contextlib.suppress(zlib.error):
        for place in range(len(data)):
            found.append(member.decompress(data[place : place + 1]))  # kept if the next one raises
    return b"".join(found)


class _Zstd:
    """Frames one after the other, which Arrow decodes."""

    is_whole = False

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self._steps = iter(_STEPS)
        self._step: int | None = None
        self._num_read = 0
        self.damage = ""
        self._open(None)

    def _open(self, careful_from: int | None) -> None:
        self._handle.seek(0)
        self._raw = _Pieces(self._handle, careful_from)
        self._stream = pa.CompressedInputStream(pa.PythonFile(self._raw, mode="r"), "zstd")

    def some(self, num_bytes: int) -> bytes:
        while not self.damage:
            try:
                data: bytes = self._stream.read(min(num_bytes, self._step or num_bytes))
            except (PipelineError, Broken):
                raise
            except (pa.ArrowException, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                self._take_smaller_steps(str(error))
            else:
                self._num_read += len(data)
                return data
        return b""

    def _take_smaller_steps(self, damage: str) -> None:
        """Go back to where the decoder did not fail yet; note the damage if steps were smallest."""
        self._step = next(self._steps, None)
        if self._step is None:
            self.damage = damage
            return
        self._open(self._raw.last)
        left = self._num_read
        while left:
            piece = self._stream.read(min(left, _INPUT_BYTES))
            if not piece:  # written to meanwhile, as is found where its version is looked at
                self.damage = damage
                return
            left -= len(piece)


class _Pieces:
    """A file as Arrow reads it, from some place on byte by byte."""

    closed = False

    def close(self) -> None:
        """Do nothing: who opened the file closes it."""

    def __init__(self, handle: BinaryIO, careful_from: int | None) -> None:
        self._handle, self._careful_from = handle, careful_from
        self._at = self.last = 0
        """`last` is where the piece begins over which a decoder fails, if it does."""

    def read(self, num_bytes: int) -> bytes:
        if self._careful_from is None:
            self.last = self._at
        else:
            self.last = self._careful_from
            before = self._careful_from - self._at
            num_bytes = min(num_bytes, before) if before > 0 else 1
        data = self._handle.read(num_bytes)
        self._at += len(data)
        return data
