"""A store that reports its operations, so that a test can act or fail before one."""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

from pipeline.core.errors import InfraError, JobError
from pipeline.storage.create_once import CreateOutcome
from pipeline.storage.interface import StoredFile
from pipeline.storage.store import Store

Trouble = Literal["unreachable", "denied", "gone", "breaks off"]
Opened = Callable[[bytes], BinaryIO]


@dataclass(frozen=True)
class WatchedStore(Store):
    """A store that calls a function before each operation."""

    watch: Callable[[str, str], Opened | None] = field(
        default=lambda verb, path: None, repr=False, compare=False
    )
    """Takes the verb and the path; may raise, and may return what makes a file of its bytes."""

    def list_files(self, prefix: str = "") -> list[StoredFile]:
        self.watch("list", prefix)
        return Store.list_files(self, prefix)

    def list_folders(self, prefix: str = "") -> list[str]:
        self.watch("list", prefix)
        return Store.list_folders(self, prefix)

    def read_bytes(self, path: str, max_bytes: int | None = None) -> bytes:
        self.watch("read", path)
        return Store.read_bytes(self, path, max_bytes)

    def open(self, path: str) -> BinaryIO:
        opened = self.watch("open", path)
        return opened(Store.read_bytes(self, path)) if opened else Store.open(self, path)

    def copy(self, source: str, target: str) -> None:
        self.watch("copy", source)
        Store.copy(self, source, target)

    def put(self, path: str, data: bytes) -> None:
        self.watch("put", path)
        Store.put(self, path, data)

    def create_once(self, path: str, data: bytes, token: str) -> CreateOutcome:
        self.watch("create", path)
        return Store.create_once(self, path, data, token)

    def delete(self, paths: Sequence[str]) -> None:
        self.watch("delete", paths[0] if paths else "")
        Store.delete(self, paths)


@dataclass
class Event:
    """What happens, once, before an operation such as `open predictions/...`."""

    before: str
    """A regular expression."""
    act: Callable[[], object]
    has_happened: bool = False

    def watch(self, verb: str, path: str) -> None:
        if not self.has_happened and re.match(self.before, f"{verb} {path}"):
            self.has_happened = True
            self.act()


@dataclass
class LookUps:
    """The operations that a run without carried rows would not do, counted from its plan on."""

    fail_at: int = 0
    """Which of them fails, from 1; 0: none."""
    trouble: Trouble = "unreachable"
    done: list[str] = field(default_factory=list)
    _histories: int = 0
    _phase: Literal["before", "looking", "working"] = "before"

    def watch(self, verb: str, path: str) -> Opened | None:
        """Count an operation; fail if it is to."""
        if verb == "list" and path.endswith("/history") and self._phase == "before":
            self._histories += 1  # the first is listed to finish what a run before left
            if self._histories == 2:
                self._phase = "looking"
        if "/plan/" in path and self._phase == "looking":
            self._phase = "working"
        if not self._is_look_up(verb, path):
            return None
        self.done.append(f"{verb} {path}")
        if len(self.done) != self.fail_at:
            return None
        if self.trouble == "breaks off" and verb == "open":
            return BreakingFile
        if self.trouble == "denied":
            raise JobError(f"cannot {verb} {path}: access denied")
        if self.trouble == "gone" and verb in ("read", "open"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        raise InfraError(f"cannot {verb} {path}: the store cannot be reached")

    def _is_look_up(self, verb: str, path: str) -> bool:
        if self._phase == "looking":
            return verb in ("list", "read") and not any(p in path for p in ("/plan/", "/lease"))
        return self._phase == "working" and verb == "open" and "/staging/" not in path


class BreakingFile(io.BytesIO):
    """A file that can be opened, and no byte of which arrives."""

    def read(self, size: int | None = -1, /) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
