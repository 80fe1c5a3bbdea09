"""Check that the Ray of a run still works, and end what is left of it.

Without its head Ray waits for a minute and then ends the driver without a word. So a run checks for
itself, on a thread of its own.
"""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pipeline.core.printable import clean_message
from pipeline.execution.private_names import read
from pipeline.process.keeper import how_it_ended
from pipeline.process.run_scope import current_scope

log = logging.getLogger(__name__)

_EXECUTOR = "StreamingExecutor"
"""Start of the names of the threads with which Ray Data executes a Dataset."""
_STOP_S = 5.0
_SILENCE_S = 25.0
_ASK_EVERY_S = 5.0
_CONNECT_S = 5.0
_DIE_S = 3.0
_LOOK_S = 0.01
_LOGGED = re.compile(r" (?P<level>[ECF]) \d+ \d+\] \(\w+\) \S+ (?P<text>.*)")
_VITAL = ("gcs_server", "raylet")
"""Processes without which Ray cannot continue."""

Check = Callable[[], str | None]
"""Returns a problem, or None; never waits long."""


@dataclass
class ConnectedRay:
    """The checks and processes of the connected Ray."""

    checks: list[Check] = field(default_factory=list)
    roots: list[psutil.Process] = field(default_factory=list)
    """The processes of Ray that this process has started."""


def _connected() -> ConnectedRay:
    return current_scope().nearest(ConnectedRay)  # runs that share a Ray share it


@contextlib.contextmanager
def watched(ray: Any, *, is_ours: bool) -> Iterator[None]:
    """Let `trouble` and `end` know the connected Ray during the body.

    Args:
        ray: The module.
        is_ours: This process has started Ray and must end it.
    """
    connected = _connected()
    if is_ours:
        connected.roots, connected.checks, outer = [], [], []
        processes: dict[str, list[Any]] = getattr(read("node"), "all_processes", None) or {}
        for process_type, infos in processes.items():
            for info in infos:
                started(process_type, info)
        if not connected.roots:  # private names are not readable: use our child processes
            _note_children(connected)
    else:
        outer = connected.checks
        connected.checks = [HeadAnswers(ray.get_runtime_context().gcs_address)]
    try:
        yield
    finally:
        connected.checks = outer


def started(process_type: str, info: Any) -> None:
    """Note a process of an embedded Ray, by the type that Ray gives it."""
    connected = _connected()
    with contextlib.suppress(psutil.NoSuchProcess):
        connected.roots.append(psutil.Process(info.process.pid))
    if process_type in _VITAL:
        connected.checks.append(ProcessLives(process_type, info))


def _note_children(connected: ConnectedRay) -> None:
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() in _VITAL:
                connected.roots.append(child)
                connected.checks.append(ChildLives(child))


def trouble() -> str | None:
    """Return a problem of the connected Ray; None if there is no problem, or no Ray."""
    checks = list(_connected().checks)
    return next((problem for check in checks if (problem := check()) is not None), None)


class ChildLives:
    """Checks whether a process of an embedded Ray has ended, but not how."""

    def __init__(self, process: psutil.Process) -> None:
        self._process, self._name = process, process.name()

    def __call__(self) -> str | None:
        return None if _is_running(self._process) else f"Ray's own process {self._name} ended"


class ProcessLives:
    """Checks whether a process of an embedded Ray has ended, and how."""

    def __init__(self, process_type: str, info: Any) -> None:
        self._type, self._info = process_type, info

    def __call__(self) -> str | None:
        if (code := self._info.process.poll()) is None:
            return None
        how = f"({how_it_ended(code)}){_complaint(self._info)}"
        return f"Ray's own process {self._type} ended {how}"


def _complaint(info: Any) -> str:
    """Return the last error in the log of a process, before the check that ended it."""
    error_text = ""
    try:
        lines = Path(info.stderr_file).read_text(errors="replace").splitlines()
    except (AttributeError, OSError, TypeError):
        return ""
    for match in filter(None, map(_LOGGED.search, lines)):
        if match["level"] in "CF":
            return f": {clean_message(error_text or match['text'])}"
        error_text = match["text"]
    return ""


class HeadAnswers:
    """Checks whether the head of a cluster has accepted no connection for a while."""

    def __init__(self, address: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._address, self._clock = address, clock
        self._answered = self._asked = clock()

    def __call__(self) -> str | None:
        now = self._clock()
        if now - self._asked >= _ASK_EVERY_S:
            self._asked = now
            host, _, port = self._address.rpartition(":")
            with contextlib.suppress(OSError):
                socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
                self._answered = now
        silence_s = now - self._answered
        if silence_s < _SILENCE_S:
            return None
        return f"the cluster's head at {self._address} has not answered for {silence_s:.0f} s"


def end(ray: Any) -> None:
    """Disconnect from Ray; end an embedded one with all its processes."""
    ours, connected = family(), _connected()
    connected.checks = []
    _stop_executors()
    try:
        ray.shutdown()
    finally:
        kill(ours)
        deadline = time.monotonic() + _DIE_S
        while any(map(_is_running, ours)) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        connected.roots = []


def _stop_executors() -> None:
    """Stop executions of Ray Data that are still in progress, as after a signal.

    Each has a scheduling thread, and Ray (2.51) ends the process of a thread that uses Ray when it
    is shut down. If there are no such threads, nothing is done.
    """
    for thread in threading.enumerate():
        if thread.name.startswith(_EXECUTOR) and hasattr(thread, "shutdown"):
            try:
                thread.shutdown(force=False)
            except Exception as error:  # noqa: BLE001  # its remaining work is of no use
                log.debug("%s: %s", thread.name, error)
            thread.join(_STOP_S)


@contextlib.contextmanager
def node_left_alone(ray: Any) -> Iterator[None]:
    """Let `ray.shutdown` in the body end no processes: a patch.

    Ray ends them one by one and waits for each, which takes two seconds. They have nothing left to
    write, so `end` kills them all at once.
    """
    node = ray._private.worker._global_node
    if node is None or not _connected().roots:
        yield
        return
    ray._private.worker._global_node = None
    try:
        yield
    finally:
        node.destroy_external_storage()


def _is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def family() -> list[psutil.Process]:
    """Return the processes of an embedded Ray and their descendants."""
    roots = _connected().roots
    processes = list(roots)
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes += root.children(recursive=True)
    return processes


def kill(processes: list[psutil.Process]) -> None:
    """Kill processes; ignore those that have ended, also if their number is used again."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
