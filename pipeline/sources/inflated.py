"""The content of a compressed shard, up to the block of input in which damage is.

The same bytes always give the same content, for blocks begin at the same places.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.core.errors import PipelineError
from pipeline.sources.whole_file import Broken

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"
"""Behind a byte 0x50 to 0x5f: a frame without content, with which a zstd may begin."""
_INPUT_BYTES = 2**16


def opened(handle: BinaryIO) -> Callable[[int], bytes]:
    """Return a function that reads up to so many bytes of a file or its content, b'' at the end.

    It raises `Broken` if the next block of the content is damaged.

    Args:
        handle: The file, at its beginning; must be seekable.
    """
    head = handle.read(4)
    handle.seek(0)
    if head.startswith(_GZIP):
        return _Content(_gunzipped(handle)).read
    is_skippable = head[1:] == _SKIPPABLE and head[0] >> 4 == 5
    if head == _ZSTD or is_skippable:
        return _Content(_unzstd(handle)).read
    return handle.read


class _Content:
    """As many bytes of some pieces at once as are wanted."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""
        self._damage: Broken | None = None

    def read(self, num_bytes: int) -> bytes:
        found = [self._rest]
        left = num_bytes - len(self._rest)
        while left > 0 and self._damage is None:
            try:
                piece = next(self._pieces, b"")
            except Broken as error:
                self._damage = error
                break
            if not piece:
                break
            found.append(piece)
            left -= len(piece)
        data = b"".join(found)
        if not data and self._damage is not None:
            raise self._damage
        data, self._rest = data[:num_bytes], data[num_bytes:]
        return data


def _gunzipped(handle: BinaryIO) -> Iterator[bytes]:
    """Yield the content of members one after the other; zeros behind one fill up tapes."""
    data = handle.read(_INPUT_BYTES)
    while data:
        data = data if len(data) > 1 else data + handle.read(1)
        if not data.startswith(_GZIP):
            raise Broken("damaged gzip: other bytes are behind its end")
        member: Any = zlib.decompressobj(16 + zlib.MAX_WBITS)
        while not member.eof:
            try:
                piece = member.decompress(data, _INPUT_BYTES)
            except zlib.error as error:
                raise Broken(f"damaged gzip: {error}") from error
            if piece:
                yield piece
            data = member.unconsumed_tail
            if not data and not piece and not member.eof:
                data = handle.read(_INPUT_BYTES)
                if not data:
                    raise Broken("damaged gzip: it ends too early")
        data = member.unused_data
        while not (data := data.lstrip(b"\0")) and (data := handle.read(_INPUT_BYTES)):
            pass


def _unzstd(handle: BinaryIO) -> Iterator[bytes]:
    """Yield the content of frames one after the other, which Arrow decodes."""
    stream = pa.CompressedInputStream(pa.PythonFile(_Open(handle), mode="r"), "zstd")
    while True:
        try:
            piece: bytes = stream.read(_INPUT_BYTES)
        except (PipelineError, Broken):
            raise
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise Broken(f"damaged zstd: {error}") from error
        if not piece:
            return
        yield piece


class _Open:
    """A file that Arrow does not close: who opened it does."""

    closed = False

    def __init__(self, handle: BinaryIO) -> None:
        self.read = handle.read

    def close(self) -> None:
        """Do nothing."""
