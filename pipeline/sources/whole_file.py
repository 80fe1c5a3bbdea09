"""A shard that is read from its beginning to its end: requests are large, an early end is an error.

What cannot be read further raises `Broken`; errors of the store are raised as they are.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from pipeline.core.backoff import BAD_BLOCK, BadBlockError, is_bad_block, with_retries
from pipeline.core.errors import InfraError
from pipeline.sources.extents import Extent
from pipeline.sources.rows import changed
from pipeline.storage.store import Store

_LOCAL_BUFFER_BYTES = 256 * 2**10
_REMOTE_BUFFER_BYTES = 8 * 2**20
"""Bytes per request: the store caches nothing, and headers are small."""


class Broken(Exception):
    """The shard cannot be read further; the message says why and where."""


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
    with raw, io.BufferedReader(_WholeFile(raw, store, extent), size) as handle:
        yield handle


class _WholeFile(io.RawIOBase):
    """A file of a known size: an early end is an error of the store, not its end."""

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
        except BadBlockError as error:
            raise Broken(f"at byte {position}: {error}") from error

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return int(self._raw.seek(offset, whence))

    def tell(self) -> int:
        return int(self._raw.tell())
