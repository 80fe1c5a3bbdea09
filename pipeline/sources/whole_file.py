"""Read a shard from its beginning to its end, inflated if it is compressed.

Requests are large, and an early end is an error. A shard that cannot be read further raises
`Broken`; errors of the store are raised as they are. The same compressed bytes always give the same
content up to the block of input that is damaged, because blocks begin at the same places.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import pyarrow as pa

from pipeline.core.backoff import BAD_BLOCK, BadBlockError, is_bad_block, with_retries
from pipeline.core.errors import AccessDenied, InfraError, PipelineError
from pipeline.sources.units import Extent, changed
from pipeline.storage.store import Store

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"
"""After a byte 0x50 to 0x5f: a frame without content, which may come first in a zstd file."""
_INPUT_BYTES = 2**16
_SKIPPED_BYTES = 2**20
_LOCAL_BUFFER_BYTES = 256 * 2**10
_REMOTE_BUFFER_BYTES = 8 * 2**20
"""Bytes per request: the store caches nothing, and headers are small."""


class Broken(Exception):
    """A shard cannot be read further; the message says why and where."""


@contextlib.contextmanager
def open_sequential(store: Store, extent: Extent) -> Iterator[BinaryIO]:
    """Open a shard that is read from its beginning to its end.

    Raises:
        InfraError: It vanished since it was planned.
    """
    size = _REMOTE_BUFFER_BYTES if store.is_object_store else _LOCAL_BUFFER_BYTES
    try:
        raw = store.open(extent.path)
    except FileNotFoundError:
        raise changed(store, extent) from None
    except AccessDenied as error:
        raw = cast(BinaryIO, _Denied(str(error)))
    with raw, io.BufferedReader(_WholeFile(raw, store, extent), size) as handle:
        yield handle


class _Denied(io.BytesIO):
    """A file to which access is denied."""

    def __init__(self, message: str) -> None:
        super().__init__()
        self._message = message

    def readinto(self, buffer: Any, /) -> int:
        raise Broken(self._message)


class _WholeFile(io.RawIOBase):
    """A file of a known size, whose early end is an error of the store."""

    def __init__(self, raw: Any, store: Store, extent: Extent) -> None:
        self._raw, self._store, self._extent = raw, store, extent

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        left_bytes = max(0, self._extent.size_bytes - self._raw.tell())
        view = memoryview(buffer)[:left_bytes]
        num_bytes = self._read_into(view) if left_bytes else 0
        if left_bytes and not num_bytes:
            raise InfraError(
                f"{self._store.url(self._extent.path)}: ended {left_bytes} bytes early while it "
                "was read; run again"
            )
        return num_bytes

    def _read_into(self, view: memoryview) -> int:
        position = self._raw.tell()

        def once() -> int:
            self._raw.seek(position)
            try:
                return int(self._raw.readinto(view))
            except OSError as error:
                if is_bad_block(error):
                    raise BadBlockError(BAD_BLOCK) from error
                raise

        try:
            return with_retries(once)
        except (BadBlockError, AccessDenied) as error:
            raise Broken(f"at byte {position}: {error}") from error

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return int(self._raw.seek(offset, whence))

    def tell(self) -> int:
        return int(self._raw.tell())


def opened(handle: BinaryIO) -> BinaryIO:
    """Return a file, or the content of a compressed one, to be read from beginning to end.

    Reading raises `Broken` once everything before the damage has been read.

    Args:
        handle: The file at its beginning; must be seekable.
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
    """A file over pieces of content."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""
        self._damage: Broken | None = None
        self._position = 0

    def read(self, size: int = -1, /) -> bytes:
        pieces = [self._rest]
        left = size - len(self._rest)
        while left > 0 and self._damage is None:
            try:
                piece = next(self._pieces, b"")
            except Broken as error:
                self._damage = error
                break
            if not piece:
                break
            pieces.append(piece)
            left -= len(piece)
        data = b"".join(pieces)
        if not data and size and self._damage is not None:
            raise self._damage
        data, self._rest = data[:size], data[size:]
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Read on and drop the content up to an offset."""
        while self.read(min(_SKIPPED_BYTES, offset - self._position)):
            pass
        return self._position

    def tell(self) -> int:
        return self._position


def _gunzipped(handle: BinaryIO) -> Iterator[bytes]:
    """Yield the content of the members in order; zeros after one are padding of tapes."""
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
    """Yield the content of the frames in order, as Arrow decodes them."""
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
    """A file that Arrow does not close, because its owner does."""

    closed = False

    def __init__(self, handle: BinaryIO) -> None:
        self.read = handle.read

    def close(self) -> None:
        """Do nothing."""
