"""The content of a compressed shard, up to the block of input in which damage is.

The same bytes always give the same content, for blocks begin at the same places.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

import pyarrow as pa

from pipeline.core.errors import PipelineError
from pipeline.sources.whole_file import Broken

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"
"""Behind a byte 0x50 to 0x5f: a frame without content, with which a zstd may begin."""
_INPUT_BYTES = 2**16
_SKIPPED_BYTES = 2**20


def opened(handle: BinaryIO) -> BinaryIO:
    """Return a file, or its content as a file that is read from its beginning to its end.

    Reading raises `Broken` once all before damage has been read.

    Args:
        handle: The file, at its beginning; must be seekable.
    """
    head = handle.read(4)
    handle.seek(0)
    if head.startswith(_GZIP):
        return cast(BinaryIO, _Content(_gunzipped(handle)))
    is_skippable = head[1:] == _SKIPPABLE and head[0] >> 4 == 5
    if head == _ZSTD or is_skippable:
        return cast(BinaryIO, _Content(_unzstd(handle)))
    return handle


class _Content(io.RawIOBase):
    """As many bytes of some pieces at once as are wanted."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""
        self._damage: Broken | None = None
        self._position = 0

    def read(self, size: int = -1, /) -> bytes:
        found = [self._rest]
        left = size - len(self._rest)
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
        if not data and size and self._damage is not None:
            raise self._damage
        data, self._rest = data[:size], data[size:]
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Read on, and drop what is read."""
        while self.read(min(_SKIPPED_BYTES, offset - self._position)):
            pass
        return self._position

    def tell(self) -> int:
        return self._position


def _gunzipped(handle: BinaryIO) -> Iterator[bytes]:
    """Yield the content of members one after the other; zeros behind one fill up tapes."""
    content = gzip.GzipFile(fileobj=handle)
    while True:
        try:
            piece = content.read1(_INPUT_BYTES)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise Broken(f"damaged gzip: {error}") from error
        if not piece:
            return
        yield piece


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
