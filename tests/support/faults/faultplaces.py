"""Where something is published, and how a step of publishing fails there."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.core.environment import FAILPOINT
from pipeline.process import failpoints
from pipeline.storage.store import Store
from support.runs.protocol import Children
from support.servers.faultproxy import CUT, RESET_AFTER, FaultProxy, Rule
from support.servers.s3server import S3Server

CREATE, PUT, COPY, DELETE = "create", "put", "copy", "delete"


@dataclass(frozen=True)
class Point:
    """A step of the protocol."""

    name: str
    """Of the failpoint; after a colon the number of the time at which it acts, from 1."""
    lost: str
    """The operation whose answer is lost at this step."""
    path: str
    """What it is done to."""
    is_committed: bool = False
    """Whether readers see the new version from here on."""


class Disk:
    """A folder, and how a step of publishing to it fails; each way tells whether it was done."""

    def __init__(self, folder: Path, children: Children) -> None:
        self.store = Store(str(folder))
        self._children = children

    def die_at(self, point: Point, step: Callable[[Store], object]) -> bool:
        name, _, nth = point.name.partition(":")
        child = self._children.start(step, self.store, point=f"{name}:kill:{nth or 1}")
        child.join(120)
        assert child.exitcode == -signal.SIGKILL
        return False

    def fail_at(self, point: Point, step: Callable[[Store], object]) -> bool:
        name, _, nth = point.name.partition(":")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(failpoints, "_reached", Counter())
            patch.setenv(FAILPOINT, f"{name}:raise:{nth or 1}")
            with pytest.raises(RuntimeError, match=f"failpoint {name}"):
                step(self.store)
        return False

    def lose_at(self, point: Point, step: Callable[[Store], object]) -> bool:
        """Let the system call happen, and then say once that it failed."""
        name = {CREATE: "link", PUT: "replace", COPY: "replace", DELETE: "unlink"}[point.lost]
        real, lost = getattr(os, name), []

        def call(*paths: str) -> None:
            real(*paths)
            if not lost and re.search(point.path, paths[-1]):
                lost.append(paths[-1])
                raise OSError(errno.EIO, os.strerror(errno.EIO), paths[-1])

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, name, call)
            step(self.store)
        assert lost
        return True


class Bucket(Disk):
    """A prefix of a bucket; here a request breaks off on its way."""

    def __init__(self, server: S3Server, proxy: FaultProxy, children: Children) -> None:
        self.store = server.store()
        self._children = children
        self._proxy = proxy
        self._far = Store(self.store.uri, server.options_at(proxy.url))

    def die_at(self, point: Point, step: Callable[[Store], object]) -> bool:
        if not point.name.startswith("mid_put"):
            return super().die_at(point, step)
        with self._rule(CUT, point) as rule:
            child = self._children.start(step, self._far, point="none:kill")
            self._proxy.on_fault = lambda _: os.kill(child.pid, signal.SIGKILL)
            child.join(120)
            assert (child.exitcode, rule.seen) == (-signal.SIGKILL, 1)
        return False

    def fail_at(self, point: Point, step: Callable[[Store], object]) -> bool:
        if not point.name.startswith("mid_put"):
            return super().fail_at(point, step)
        with self._rule(CUT, point) as rule:
            step(self._far)
            assert rule.seen > 1, "it was sent again"
        return True

    def lose_at(self, point: Point, step: Callable[[Store], object]) -> bool:
        with self._rule(RESET_AFTER, point) as rule:
            step(self._far)
            assert rule.seen
        return True

    @contextmanager
    def _rule(self, action: str, point: Point) -> Iterator[Rule]:
        method = "DELETE" if point.lost == DELETE else "PUT"
        head = {CREATE: "\nif-none-match:", COPY: "\nx-amz-copy-source:"}.get(point.lost, "")
        rule = Rule(action, method, point.path, head=head)
        self._proxy.rules = (rule,)
        try:
            yield rule
        finally:
            self._proxy.rules, self._proxy.on_fault = (), lambda _: None
