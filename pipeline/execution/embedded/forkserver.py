"""Fork the workers of an embedded Ray instead of starting them; see `forkserver_main`."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.execution.embedded import forkserver_main, forkserver_stub
from pipeline.execution.embedded.minimal_head import raylet_command
from pipeline.execution.environment import set_embedded
from pipeline.execution.private_names import is_plain
from pipeline.process.run_scope import current_scope

log = logging.getLogger(__name__)

_MODULES = (
    "ray._private.workers.default_worker",
    "ray.data",
    "ray.data._internal.issue_detection",  # needed to unpickle every task of Ray Data
    "pipeline.execution.predictor_actor",
    "pipeline.inference.engines.torch_engine",
    "pipeline.preprocessing.images.image_rows",
    "pipeline.commit.staging",
)
"""Modules that the workers of a run import, all of them or only the actors."""
_WORKER_COMMAND = "--python_worker_command="
_WORKER = ("_private", "workers", "default_worker.py")
_PRESTART = "--num_prestart_python_workers="
_PROCESS_TYPE = "fork_server"


class ForkServer:
    """The process from which workers are forked."""

    def __init__(self) -> None:
        """Start the process; it imports in parallel, and ends with this process."""
        self.name = f"pipeline-{secrets.token_hex(16)}"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(forkserver_stub.address(self.name))
            listening.listen()
            descriptor = listening.fileno()
            self._process = subprocess.Popen(  # noqa: S603  # this program
                [
                    *(sys.executable, "-P", "-m", forkserver_main.__name__),
                    *(str(os.getpid()), str(descriptor), *_MODULES),
                ],
                env={
                    "OMP_NUM_THREADS": "1",  # as Ray has it for tasks; actors set theirs
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(sys.path),
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[descriptor],
                # Ctrl-C is for the driver. Not a new session: where Linux schedules by sessions,
                # actors would get less of the processor than the driver.
                process_group=0,
            )

    @property
    def pid(self) -> int:
        """Return the process number."""
        return self._process.pid

    def asked_by(self, ray: Any, raylet: list[str]) -> list[str]:
        """Return the command of a raylet, changed to ask for forked workers."""
        worker = str(Path(ray.__file__).parent.joinpath(*_WORKER))
        quoted_worker = subprocess.list2cmdline([worker])
        asking = ["-I", "-S", forkserver_stub.__file__, self.name, worker]
        command = [
            argument.replace(quoted_worker, subprocess.list2cmdline(asking), 1)
            if argument.startswith(_WORKER_COMMAND)
            else argument
            for argument in raylet
        ]
        # Ray would wait for workers that it starts before there is work.
        return [
            *(argument for argument in command if not argument.startswith(_PRESTART)),
            f"{_PRESTART}0",
        ]

    def belongs_to(self, ray: Any) -> None:
        """Let the process end with the Ray that this process has started."""
        nothing = dict.fromkeys(ray._private.services.ProcessInfo._fields)
        info = ray._private.services.ProcessInfo(**{**nothing, "process": self._process})
        ray._private.worker._global_node.all_processes[_PROCESS_TYPE] = [info]

    def end(self) -> None:
        """End the process and wait for its end."""
        with self._process as process:
            process.kill()


@contextlib.contextmanager
def fork_from(ray: Any, server: ForkServer | None) -> Iterator[None]:
    """Let a Ray started in the body fork its workers from a server, if there is one."""
    if server is None:
        yield
        return
    with raylet_command(ray, lambda command: server.asked_by(ray, command)):
        yield
    server.belongs_to(ray)


@dataclass
class _Ahead:
    """A server that waits for `fork_workers`."""

    server: ForkServer | None = None


@contextlib.contextmanager
def started_ahead(address: str | None) -> Iterator[None]:
    """Start the server for a `fork_workers` in the body, if there is no address.

    Its imports take longer than the rest of the start of a run. It ends if it is not used.
    """
    ahead = current_scope().part(_Ahead)
    if address is None:
        set_embedded()
        ahead.server = _start()
    try:
        yield
    finally:
        if ahead.server is not None:
            ahead.server.end()
            ahead.server = None


@contextlib.contextmanager
def fork_workers() -> Iterator[ForkServer | None]:
    """Start a server that ends if the body fails; None if the system cannot."""
    ahead = current_scope().nearest(_Ahead)
    server, ahead.server = ahead.server or _start(), None
    try:
        yield server
    except BaseException:
        if server is not None:
            server.end()
        raise


def _start() -> ForkServer | None:
    if sys.platform != "linux" or is_plain():
        return None
    try:
        return ForkServer()
    except OSError as error:
        log.warning("workers start one by one, which is slower: %s", error)
        return None
