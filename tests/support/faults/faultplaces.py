"""Places to publish to, and the ways in which a step of publishing fails there."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from pipeline.core.environment import FAILPOINT
from pipeline.core.errors import PartitionBusy
from pipeline.process import failpoints
from pipeline.storage.store import Store
from support.runs.protocol import Children
from support.servers.faultproxy import CUT, RESET_AFTER, FaultProxy, Rule
from support.servers.object_stores import S3Server

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


_PREDICTION = r"predictions/[^/]+/part-"  # an object's URL has no `=`
_FAILURE = r"quarantine/[^/]+/part-"
POINTS = (
    Point("leased", CREATE, r"/lease/\d+\.json"),
    Point("planned", PUT, r"/plan/"),
    Point("mid_put:3", PUT, r"/staging/\w+/000000-000000000-"),
    Point("slice_put:2", PUT, r"/staging/\w+/000000-\d+-\d+z-"),
    Point("tiled", PUT, r"/compacted-[\w-]+/predictions/"),
    Point("judged", PUT, r"/compacted-[\w-]+/quarantine/"),
    Point("keys_written", PUT, r"/keys/[\w-]+/shards"),
    Point("compacted", COPY, _PREDICTION),
    Point("placed_part", COPY, _FAILURE),
    Point("before_log", CREATE, r"/log/"),
    Point("after_log", COPY, r"/history/", is_committed=True),
    Point("kept", DELETE, _PREDICTION, is_committed=True),
    Point("retired:2", DELETE, r"/history/", is_committed=True),
    Point("before_current:2", PUT, r"/current\.json", is_committed=True),
    Point("trimmed:2", DELETE, r"/history/", is_committed=True),
    Point("unstaged", DELETE, r"/staging/", is_committed=True),
    Point("mid_gc", DELETE, r"/staging/", is_committed=True),
)
"""The steps of a run that publishes the third version of a partition and keeps one."""
FAULTS = ("exit", "raise", "lost answer")


def fail_at(name: str, act: Callable[[], object]) -> None:
    """Let what is done fail at a failpoint, after a colon the number of the time."""
    name, _, nth = name.partition(":")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failpoints, "_reached", Counter())
        patch.setenv(FAILPOINT, f"{name}:raise:{nth or 1}")
        with pytest.raises(RuntimeError, match=f"failpoint {name}"):
            act()


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
        fail_at(point.name, lambda: step(self.store))
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

    def stop_at(self, point: Point, step: Callable[[Store], object]) -> bool:
        """Let a process stand still until another one has done the step, and then go on."""
        name, _, nth = point.name.partition(":")
        child = self._children.start(step, self.store, point=f"{name}:stop:{nth or 1}")
        process = psutil.Process(child.pid)
        while process.status() != psutil.STATUS_STOPPED:
            assert child.exitcode is None
        is_done = False
        while not is_done:
            with suppress(PartitionBusy):  # until the lease has run out
                step(self.store)
                is_done = True
        process.send_signal(signal.SIGCONT)
        child.join(120)
        assert child.exitcode in (0, 1)
        return True

    def act(self, fault: str, point: Point, step: Callable[[Store], object]) -> bool:
        """Let a step fail in one of `FAULTS`, or stop."""
        acts = {"exit": self.die_at, "raise": self.fail_at, "lost answer": self.lose_at}
        acts["stop"] = self.stop_at
        return acts[fault](point, step)


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


def make_place(
    request: pytest.FixtureRequest, folder: Path, children: Children, files: Mapping[str, bytes]
) -> Disk:
    """Return the place that a fixture was asked for, with files: local, or the name of a server."""
    place = Disk(folder, children)
    if request.param == "s3":
        place = Bucket(*map(request.getfixturevalue, ("s3", "proxy", "children")))
    elif request.param != "local":
        place.store = request.getfixturevalue(request.param).store()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: place.store.put(*item), files.items()))
    return place
