"""Forks the workers of an embedded Ray from a process that has imported what workers import.

A worker that Ray starts imports Ray, Ray Data and, where it predicts, torch: seconds for each of
them, and the same memory again. Here one process imports them while Ray starts.

Run as a program: `forkserver_main DRIVER FD MODULE...`, with the driver's number, a socket that
listens, and as standard input a pipe that ends when the driver does.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from pipeline.execution.embedded.forkserver_stub import (
    FORKED,
    NUM_STREAMS,
    OOM_SCORE,
    SIZE_BYTES,
    is_ours,
)
from pipeline.process.parent_death import die_with

_SLOW_S = 10.0
_STDIN = 0
_NO_JOB = "ffffffff"
"""The job of a worker that takes the one of its first task."""


def main() -> None:
    """Import, then fork a worker for each that is asked for, until the driver ends."""
    driver, descriptor, *modules = sys.argv[1:]
    die_with(int(driver))  # also while it imports
    gc.disable()  # imports allocate much and free nothing
    # What Ray reads when it is imported, and never again: without which process a worker ends, and
    # for which job it is.
    os.environ |= {"RAY_RAYLET_PID": str(os.getpid()), "RAY_JOB_ID": _NO_JOB}
    _import(modules)
    gc.freeze()  # what the collector does not look at is not copied
    gc.enable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets workers that end
    if _random_id() == _random_id():
        sys.exit("workers would give the same names to different things")
    program = serve(socket.socket(fileno=int(descriptor)))
    if program is not None:
        runpy.run_path(program, run_name="__main__")


def _import(modules: list[str]) -> None:
    """Import without drawing an identity: forked workers would go on from there, all alike."""
    import ray.actor

    id_type = ray.actor.ActorClassID
    drawn = SimpleNamespace(from_random=lambda: id_type(os.urandom(id_type.size())))
    with patch.object(ray.actor, "ActorClassID", drawn):
        for module in modules:
            importlib.import_module(module)


def _random_id() -> bytes:
    """Return the first identity that a forked process draws."""
    from ray._raylet import ActorClassID

    reading, writing = os.pipe()
    if os.fork() == 0:
        os.write(writing, ActorClassID.from_random().binary())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        return file.read()


def serve(listening: socket.socket) -> str | None:
    """Fork for each request; return its program in the worker, and None when the driver ends."""
    waited: list[Any] = [listening, _STDIN]
    server = os.getpid()
    while _STDIN not in select.select(waited, [], [])[0]:
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(_SLOW_S)
            try:
                request = Request.receive(connection)
                is_worker = os.fork() == 0
            except (OSError, ValueError):
                continue  # who asks becomes the worker itself when the connection ends
            if is_worker:
                listening.close()
                request.become(server)
                return request.program[0]
            request.forget()
            with contextlib.suppress(OSError):
                connection.sendall(FORKED)
    return None


@dataclass(frozen=True)
class Request:
    """What a worker has from the process that asks for it."""

    streams: list[int]
    """Its standard input, output and error output."""
    program: list[str]
    """A Python file, and arguments."""
    folder: str
    environment: dict[str, str]
    blocked: list[int]
    """Signals that do not reach it."""
    oom_score: str
    """How readily the kernel ends it where memory is short."""

    @classmethod
    def receive(cls, connection: socket.socket) -> Request:
        """Read what `fork_workers` sends.

        Raises:
            OSError: Another user asks, or the connection fails.
            ValueError: It ends early.
        """
        if not is_ours(connection):
            raise PermissionError("another user asks for a worker")
        header, streams, _, _ = socket.recv_fds(connection, SIZE_BYTES, NUM_STREAMS)
        with connection.makefile("rb") as file:
            content = file.read(int.from_bytes(header))
        return cls(streams, **json.loads(content))

    def forget(self) -> None:
        """Close the streams: the worker has its own."""
        for stream in self.streams:
            os.close(stream)

    def become(self, server: int) -> None:
        """Make this process what the one that asks would have become; it ends with the server."""
        die_with(server)
        os.setpgid(0, 0)  # a raylet ends the group of a worker that has ended
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, stream in enumerate(self.streams):
            os.dup2(stream, number)
        self.forget()
        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.environment)
        Path(OOM_SCORE).write_text(self.oom_score)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.blocked)
        sys.argv[:] = self.program
        _read_environment_again()
        random.seed()
        if "numpy" in sys.modules:  # else all workers draw the same numbers
            sys.modules["numpy"].random.seed()


def _read_environment_again() -> None:
    """Let Ray forget what it read from another environment."""
    raylet: Any = sys.modules["ray._raylet"]
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


if __name__ == "__main__":
    main()
