"""Programs that share a store and take turns, an operation of the store at a time.

Each runs in a thread of its own and waits before every operation until the test lets it go on; so
the test decides the order, and whether an operation fails, or is done and its answer lost. What is
done, is done by the real store on local disk.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

from pipeline.storage.interface import StoredFile
from pipeline.storage.local_disk import LocalDisk
from pipeline.storage.store import Store

Fault = Literal["", "lost", "refused"]
"""Nothing; done, but its answer is lost; not done."""
_HANDOVER_S = 60.0


class Killed(BaseException):
    """The program ends here; nothing that it would still do at the store happens."""


class Program:
    """A function over a store that stops before each operation."""

    def __init__(self, name: str, uri: str, body: Callable[[Store], object]) -> None:
        self.name = name
        self.result: object = None
        self.error: BaseException | None = None
        self.is_over = False
        self.pending = ""
        """The operation that it waits for: its name and its path."""
        self._fault: Fault = ""
        self._is_killed = False
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        store = SteppedStore(uri, program=self)
        self._thread = threading.Thread(target=self._run, args=(body, store), daemon=True)
        self._thread.start()
        self._wait()  # at its first operation

    def step(self, fault: Fault = "") -> None:
        """Let one operation happen."""
        self._fault = fault
        self._go.release()
        self._wait()

    def kill(self) -> None:
        """End it before its next operation, as kill -9 would."""
        self._is_killed = True
        if not self.is_over:
            self.step()
        self._thread.join(_HANDOVER_S)

    def take_turn(self, operation: str) -> Fault:
        """Called by the store before an operation: wait for the test."""
        self.pending = operation
        if not self._is_killed:
            self._stopped.release()
            self._go.acquire()
        if self._is_killed:
            raise Killed
        return self._fault

    def _wait(self) -> None:
        if not self._stopped.acquire(timeout=_HANDOVER_S):
            raise RuntimeError(f"{self.name} neither went on nor ended")

    def _run(self, body: Callable[[Store], object], store: Store) -> None:
        try:
            self.result = body(store)
        except BaseException as error:  # noqa: BLE001  # the test looks at it
            self.error = error
        self.is_over = True
        self._stopped.release()


@dataclass(frozen=True)
class SteppedStore(Store):
    """A store on local disk whose every operation waits for its turn."""

    program: Program | None = field(default=None, repr=False, compare=False)

    def _list(self, prefix: str) -> list[StoredFile]:
        return self._call(
            "list",
            prefix,
            lambda _: self._turn(f"list {prefix}", lambda: Store._list(self, prefix)),
        )

    def _backend(self) -> Any:
        return SteppedDisk(self._turn)

    def _turn(self, operation: str, act: Callable[[], Any]) -> Any:
        assert self.program is not None
        fault = self.program.take_turn(operation)
        if fault == "refused":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        result = act()
        if fault == "lost":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return result


class SteppedDisk:
    """`pipeline.storage.local_disk` behind turns."""

    def __init__(self, turn: Callable[[str, Callable[[], Any]], Any]) -> None:
        self._turn = turn
        self._disk = LocalDisk()

    def stat(self, path: str) -> StoredFile | None:
        return self._turn(f"stat {path}", lambda: self._disk.stat(path))

    def exists(self, path: str) -> bool:
        return self._turn(f"exists {path}", lambda: self._disk.exists(path))

    def read(self, path: str, max_bytes: int | None = None) -> bytes:
        return self._turn(f"read {path}", lambda: self._disk.read(path, max_bytes))

    def read_many(
        self, paths: Sequence[str], versions: Sequence[str] | None = None
    ) -> Sequence[bytes | Exception]:
        return self._turn("read_many", lambda: self._disk.read_many(paths, versions))

    def open(self, path: str) -> BinaryIO:
        return self._turn(f"open {path}", lambda: self._disk.open(path))

    def put(self, path: str, data: bytes) -> None:
        self._turn(f"put {path}", lambda: self._disk.put(path, data))

    def create(self, path: str, data: bytes) -> None:
        self._turn(f"create {path}", lambda: self._disk.create(path, data))

    def copy(self, source: str, target: str) -> None:
        self._turn(f"copy {target}", lambda: self._disk.copy(source, target))

    def delete(self, paths: Sequence[str]) -> None:
        for path in paths:
            self._turn(f"delete {path}", lambda path=path: self._disk.delete([path]))
