"""A program that forks the workers of an embedded Ray, after importing what workers import.

A worker that Ray starts imports Ray, Ray Data and, to predict, torch: seconds per worker, and the
same memory again. Here one process imports them while Ray starts.

Run as `forkserver_main DRIVER FD MODULE...`, with the number of the driver's process, a listening
socket, and as standard input a pipe that ends with the driver.
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
"""The job of a worker that takes the job of its first task."""


def main() -> None:
    """Import, then fork a worker per request, until the driver ends."""
    driver, descriptor, *modules = sys.argv[1:]
    die_with(int(driver))  # also while it imports
    gc.disable()  # imports allocate much and free nothing
    # Ray reads these only when it is imported: the process with which a worker ends, and its job.
    os.environ |= {"RAY_RAYLET_PID": str(os.getpid()), "RAY_JOB_ID": _NO_JOB}
    _import(modules)
    gc.freeze()  # pages that the collector does not touch are not copied
    gc.enable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps ended workers
    if _random_id() == _random_id():
        sys.exit("workers would give the same ids to different objects")
    program = serve(socket.socket(fileno=int(descriptor)))
    if program is not None:
        runpy.run_path(program, run_name="__main__")


def _import(modules: list[str]) -> None:
    """Import without drawing a random id: all forked workers would continue with the same ids."""
    import ray.actor

    id_type = ray.actor.ActorClassID
    drawn = SimpleNamespace(from_random=lambda: id_type(os.urandom(id_type.size())))
    with patch.object(ray.actor, "ActorClassID", drawn):
        for module in modules:
            importlib.import_module(module)


def _random_id() -> bytes:
    """Return the first random id that a forked process draws."""
    from ray._raylet import ActorClassID

    reading, writing = os.pipe()
    if os.fork() == 0:
        os.write(writing, ActorClassID.from_random().binary())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        return file.read()


def serve(listening: socket.socket) -> str | None:
    """Fork per request; return the program in the worker, and None when the driver ends."""
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
                continue  # the asking process becomes the worker when the connection ends
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
    """The properties of a worker, from the process that asks for it."""

    streams: list[int]
    """Standard input, output and error."""
    program: list[str]
    """A Python file and its arguments."""
    folder: str
    environment: dict[str, str]
    blocked: list[int]
    """Blocked signals."""
    oom_score: str
    """How readily the kernel ends the process if memory runs out."""

    @classmethod
    def receive(cls, connection: socket.socket) -> Request:
        """Read a request of `forkserver_stub`.

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
        """Turn this process into what the asking process would have become; end with the server."""
        die_with(server)
        os.setpgid(0, 0)  # a raylet ends the process group of an ended worker
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
        if "numpy" in sys.modules:  # otherwise all workers would draw the same numbers
            sys.modules["numpy"].random.seed()


def _read_environment_again() -> None:
    """Let Ray forget settings from another environment."""
    raylet: Any = sys.modules["ray._raylet"]
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


if __name__ == "__main__":
    main()
