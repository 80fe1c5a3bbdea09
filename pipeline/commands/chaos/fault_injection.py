"""Local disk that answers with the errors of an object store, for `pipeline chaos`.

Its errors are raw, as the library of a store raises them, so that they take the way of real ones:
classified, tried again, counted.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, BinaryIO, TypeVar, cast

from pipeline.commands.chaos.fault_plan import WRITES, StoreChaos, StoreFault, read_chaos
from pipeline.core.environment import STORE_WRAPPER
from pipeline.core.errors import JobError
from pipeline.storage.interface import Backend, Choice, StoredFile
from pipeline.storage.local_disk import LocalDisk
from pipeline.storage.object_store import RemoteFile

B = TypeVar("B", bound=Backend)
T = TypeVar("T")


def inject_faults(backend: B, root: str, folder: str) -> B:
    """Return a backend with faults if its store lies in the scratch folder, otherwise read-only.

    Raises:
        JobError: `folder` is no scratch folder of `pipeline chaos`.
    """
    chaos = read_chaos(folder)
    if chaos.holds(root):  # always on local disk
        return cast(B, DisturbedDisk(chaos))
    return cast(B, _ReadOnly(backend, root, folder))


class _ReadOnly:
    """A store outside the scratch folder: chaos leaves it as it is, and may not write there."""

    def __init__(self, backend: Backend, root: str, folder: str) -> None:
        self._backend, self._root, self._folder = backend, root, folder

    def __getattr__(self, name: str) -> Any:
        if name in WRITES:
            raise JobError(
                f"{self._root}: {STORE_WRAPPER} is set, so that nothing may be written outside "
                f"{self._folder}; unset it"
            )
        return getattr(self._backend, name)


class _Refused(OSError):
    """An answer 503, as the library of a store raises it."""

    def __init__(self) -> None:
        super().__init__("Please reduce your request rate.")
        self.response = {"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}


def _broken_off() -> OSError:
    return ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))


class DisturbedDisk(LocalDisk):
    """`LocalDisk` with faults in every operation."""

    def __init__(self, chaos: StoreChaos) -> None:
        self._chaos = chaos

    def list(self, folder: str, choice: Choice | None = None) -> Iterator[Sequence[StoredFile]]:
        return self._ask("list", folder, partial(super().list, folder, choice))

    def stat(self, path: str) -> StoredFile | None:
        return self._ask("stat", path, partial(super().stat, path))

    def read(self, path: str) -> bytes:
        return self._ask("read", path, partial(super().read, path))

    def read_many(
        self, paths: Sequence[str], versions: Sequence[str] | None = None
    ) -> Sequence[bytes | Exception]:
        found: list[bytes | Exception] = []
        for index, path in enumerate(paths):
            pinned = None if versions is None else versions[index : index + 1]
            try:
                found += self._ask("read", path, partial(super().read_many, [path], pinned))
            except OSError as error:
                found.append(error)
        return found

    def open(self, path: str) -> BinaryIO:
        handle = self._ask("open", path, partial(super().open, path))
        return cast(BinaryIO, _DisturbedFile(handle, path, self._chaos))

    def put(self, path: str, data: bytes) -> None:
        self._ask("put", path, partial(super().put, path, data))

    def put_file(self, path: str, source: str) -> None:
        self._ask("put_file", path, partial(super().put_file, path, source))

    def create(self, path: str, data: bytes) -> None:
        self._ask("create", path, partial(super().create, path, data))

    def copy(self, source: str, target: str) -> None:
        self._ask("copy", target, partial(super().copy, source, target))

    def delete(self, paths: Sequence[str]) -> None:
        if paths:
            self._ask("delete", paths[0], partial(super().delete, paths))

    def _ask(self, operation: str, path: str, act: Callable[[], T]) -> T:
        """Do it, with the fault whose turn it is."""
        injected = self._chaos.next_fault(operation, path)
        if injected is None:
            return act()
        match injected.fault:
            case StoreFault.REFUSE:
                raise _Refused
            case StoreFault.CUT:
                raise _broken_off()
            case StoreFault.LOSE:
                act()
                raise _broken_off()
        time.sleep(injected.delay_s)
        return act()


class _DisturbedFile(RemoteFile):
    """An open file of which each range is a request of its own."""

    def __init__(self, handle: BinaryIO, path: str, chaos: StoreChaos) -> None:
        super().__init__(os.fstat(handle.fileno()).st_size, self._fetch)
        self._handle, self._path, self._chaos = handle, path, chaos

    def _fetch(self, start: int, end: int) -> bytes:
        injected = self._chaos.next_fault("fetch", self._path)
        if injected is not None and injected.fault is StoreFault.REFUSE:
            raise _Refused
        if injected is not None and injected.fault is StoreFault.CUT:
            end = (start + end) // 2  # what has come when the connection breaks
        time.sleep(0.0 if injected is None else injected.delay_s)
        self._handle.seek(start)
        return self._handle.read(end - start)

    def close(self) -> None:
        self._handle.close()
        super().close()
