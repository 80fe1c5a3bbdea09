"""A store that fails once where a run looks for rows to carry over, or takes them over."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Literal, TypeVar

from pipeline.core.errors import InfraError, JobError
from pipeline.storage.interface import StoredFile
from pipeline.storage.store import Store

T = TypeVar("T")
Trouble = Literal["unreachable", "denied", "gone", "breaks off"]


@dataclass
class LookUps:
    """The operations that a run without carried rows would not do, counted from its plan on."""

    fail_at: int = 0
    """Which of them fails, from 1; 0: none."""
    trouble: Trouble = "unreachable"
    done: list[str] = field(default_factory=list)
    _histories: int = 0
    _phase: Literal["before", "looking", "working"] = "before"

    def note(self, verb: str, path: str, target: str = "") -> bool:
        """Count an operation; tell whether it is to fail."""
        if verb == "list" and path.endswith("/history") and self._phase == "before":
            self._histories += 1  # the first is listed to finish what a run before left
            if self._histories == 2:
                self._phase = "looking"
        if "/plan/" in path and self._phase == "looking":
            self._phase = "working"
        if not self._is_look_up(verb, path, target):
            return False
        self.done.append(f"{verb} {path}")
        return len(self.done) == self.fail_at

    def _is_look_up(self, verb: str, path: str, target: str) -> bool:
        if self._phase == "looking":
            return verb in ("list", "read") and not any(p in path for p in ("/plan/", "/lease"))
        if self._phase == "working":
            return verb == "open" and "/staging/" not in path
        return False

    def error(self, verb: str, path: str) -> Exception:
        if self.trouble == "denied":
            return JobError(f"cannot {verb} {path}: access denied")
        if self.trouble == "gone" and verb in ("read", "open", "copy"):
            return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return InfraError(f"cannot {verb} {path}: the store cannot be reached")


@dataclass(frozen=True)
class FailingStore(Store):
    """A store whose look-ups are counted, and one of which fails."""

    look_ups: LookUps = field(default_factory=LookUps, repr=False, compare=False)

    def list_files(self, prefix: str = "") -> list[StoredFile]:
        return self._do("list", prefix, lambda: Store.list_files(self, prefix))

    def list_folders(self, prefix: str = "") -> list[str]:
        return self._do("list", prefix, lambda: Store.list_folders(self, prefix))

    def read_bytes(self, path: str) -> bytes:
        return self._do("read", path, lambda: Store.read_bytes(self, path))

    def open(self, path: str) -> BinaryIO:
        if not self.look_ups.note("open", path):
            return Store.open(self, path)
        if self.look_ups.trouble == "breaks off":
            return BreakingFile(Store.read_bytes(self, path))
        raise self.look_ups.error("open", path)

    def copy(self, source: str, target: str) -> None:
        self._do("copy", source, lambda: Store.copy(self, source, target), target)

    def put(self, path: str, data: bytes) -> None:
        self._do("put", path, lambda: Store.put(self, path, data))

    def delete(self, paths: Sequence[str]) -> None:
        self._do("delete", paths[0] if paths else "", lambda: Store.delete(self, paths))

    def _do(self, verb: str, path: str, act: Callable[[], T], target: str = "") -> T:
        if self.look_ups.note(verb, path, target):
            raise self.look_ups.error(verb, path)
        return act()


class BreakingFile(io.BytesIO):
    """A file that can be opened, and no byte of which arrives."""

    def read(self, size: int | None = -1, /) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
