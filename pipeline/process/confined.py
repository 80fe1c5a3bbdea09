"""Call a function of ours over untrusted data in a child process with limits and without a network.

A server process imports the libraries once, and forks a child for each call
(`confined_server.py`, which lists what a child may not do). Processes that this one forks share the
server. It ends when all of them have ended.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pipeline.core import errors
from pipeline.core.printable import clean_message
from pipeline.process.liveness import still_alive

_SERVER = "pipeline.process.confined_server"
_KEPT = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ")
"""Environment variables that the server keeps: none of them can hold a secret."""
_SET = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "HOME": "/nonexistent",  # no settings, caches and tokens of the user
    "MALLOC_ARENA_MAX": "2",  # each further one reserves 64 MiB of the limited addresses
    "OMP_WAIT_POLICY": "passive",  # threads of small models would spend their time waiting
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
    "USE_HUB_KERNELS": "NO",
}
_LOOK_S = 1.0
_SHOWN_CHARS = 300


class ConfinedError(Exception):
    """The function raised an error that is not ours, or its process ended; one line."""


@dataclass(frozen=True)
class Call:
    """A call of a function in a confined child, as the server reads it from our pipe."""

    function: str
    """`module:name` of a function that takes the arguments and returns a JSON value."""
    arguments: bytes
    """Pickled; only the child unpickles them."""
    reads: tuple[str, ...]
    """Files and folders that the child may read, besides the installed packages."""
    imports: tuple[str, ...]
    """Modules that the server imports before it forks; missing ones are skipped."""
    cpu_s: int
    memory_bytes: int
    """Memory beyond that of the libraries."""


def confined(
    function: str,
    *arguments: Any,
    reads: Sequence[Path],
    imports: Sequence[str] = (),
    cpu_s: int = 300,
    memory_bytes: int = 8 << 30,
) -> Any:
    """Return what a function of ours returns in a confined child process.

    Args:
        function: `module:name`; the server imports the module once.
        arguments: Plain values that can be pickled.
        reads: Files and folders that the child may read, besides the installed packages.
        imports: Modules to import once for all calls of this process, or functions `module:name` to
            call once.
        cpu_s: Limit of processor time; the limit of wall-clock time is twice as much.
        memory_bytes: Limit of memory beyond the imports.

    Raises:
        PipelineError: The function raised it.
        InfraError: This machine cannot start the child.
        ConfinedError: The function raised another error, or took more than its limits.
    """
    call = Call(
        function,
        pickle.dumps(arguments),
        tuple(str(path.resolve()) for path in reads),
        tuple(imports),
        cpu_s,
        memory_bytes,
    )
    # After Ctrl-C here the server sees the end of the connection and kills the child.
    with _connected() as server:
        try:
            server.send(call)
            while not server.poll(_LOOK_S):
                still_alive()
            reply = json.loads(server.recv_bytes())
        except (EOFError, OSError):
            raise errors.InfraError(
                "the process that reads model directories was ended by the system: is there "
                "too little memory?"
            ) from None
    return _result(reply)


def _result(reply: Any) -> Any:
    if "value" in reply:
        return reply["value"]
    name, message = reply["error"]
    cls = getattr(errors, name, None) if name.isidentifier() else None
    if isinstance(cls, type) and issubclass(cls, errors.PipelineError):
        raise cls(message)
    raise ConfinedError(clean_message(message, _SHOWN_CHARS))


class _Server:
    """The process from which children are forked."""

    def __init__(self, path: Sequence[str]) -> None:
        self.path = path
        self._control, theirs = socket.socketpair()
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  # this program
                [sys.executable, "-P", "-m", _SERVER, str(theirs.fileno())],
                env={**kept, **_SET, "PYTHONPATH": os.pathsep.join(path)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,  # Ctrl-C is for its caller
            )

    def connect(self) -> Connection:
        """Return a connection for one call.

        Raises:
            OSError: The process has ended.
        """
        ours, theirs = Pipe()
        with theirs:
            try:
                socket.send_fds(self._control, [b"\0"], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours

    def close(self) -> None:
        """Let the server end when the processes that share it have ended."""
        self._control.close()
        self._process.poll()


_turns: dict[int, threading.Lock] = {}
"""Process -> lock for its threads that start the server; a fork has no use for its parent's."""
_servers: list[_Server] = []


def start_server() -> None:
    """Start the process from which children are forked, unless it runs."""
    _connected().close()


def _connected() -> Connection:
    path = [entry for entry in sys.path if entry]
    with _turns.setdefault(os.getpid(), threading.Lock()):
        if _servers and _servers[0].path == path:
            try:
                return _servers[0].connect()
            except OSError:
                pass  # it has ended, perhaps for lack of memory
        for server in _servers:
            server.close()
        _servers[:] = [_Server(path)]
        return _servers[0].connect()
