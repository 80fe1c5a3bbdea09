"""Run a function of ours over foreign data in a child process without a network and with limits.

A server process imports the libraries once, and forks a child for each call
(`confined_server.py`, which says what a child may not do). The server ends with this process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from pipeline.core import errors
from pipeline.core.printable import clean_message
from pipeline.process.liveness import still_alive

_SERVER = "pipeline.process.confined_server"
_KEPT = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ")
"""Variables of the environment that the server keeps: none of them can hold a secret."""
_SET = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
}
_LOOK_S = 1.0
_SHOWN_CHARS = 300


class ConfinedError(Exception):
    """The function raised an error that is none of ours, or its process ended; has one line."""


@dataclass(frozen=True)
class Call:
    """A call of a function in a confined child; the server reads it from a pipe of ours."""

    function: str
    """`module:name` of a function that takes the arguments and returns a JSON value."""
    arguments: tuple[Any, ...]
    reads: tuple[str, ...]
    """Files and folders that it may read, besides the installed packages."""
    imports: tuple[str, ...]
    """Modules that the server imports before it forks; what is not installed is left out."""
    cpu_s: int
    memory_bytes: int
    """Beyond what the libraries take."""


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
        function: `module:name`.
        arguments: Plain values that can be pickled.
        reads: Files and folders that it may read, besides the installed packages.
        imports: Modules to import once for all calls of this process.
        cpu_s: Processor time that it may take; twice as much of the clock.
        memory_bytes: Memory that it may take beyond its imports.

    Raises:
        PipelineError: The function raised it.
        ConfinedError: It raised another error, or took more than its limits.
    """
    call = Call(
        function,
        arguments,
        tuple(str(path.resolve()) for path in reads),
        tuple(imports),
        cpu_s,
        memory_bytes,
    )
    with _turn:
        server = _running()
        try:
            reply = server.answer(call)
        except BaseException:  # also Ctrl-C: its answer may still come
            server.end()
            raise
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
    """The process that children are forked from."""

    def __init__(self) -> None:
        self.pipe, theirs = Pipe()
        self.owner = os.getpid()
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        self._process = subprocess.Popen(  # noqa: S603  # this program
            [sys.executable, "-P", "-m", _SERVER, str(theirs.fileno())],
            env={**kept, **_SET, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            process_group=0,  # Ctrl-C is its caller's
        )
        theirs.close()

    @property
    def is_usable(self) -> bool:
        """Tell whether it is this process's own, not that of one it was forked from, and runs."""
        return self.owner == os.getpid() and self._process.poll() is None

    def answer(self, call: Call) -> Any:
        """Let a child make the call, and return what it replies."""
        try:
            self.pipe.send(call)
            while not self.pipe.poll(_LOOK_S):
                still_alive()
            return json.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            return {"error": ("", "the process that reads it ended")}

    def end(self) -> None:
        """End it, and wait for that."""
        self.pipe.close()
        self._process.kill()
        self._process.wait()


_turn = threading.Lock()
_servers: list[_Server] = []


def _running() -> _Server:
    if not (_servers and _servers[0].is_usable):
        _servers[:] = [_Server()]
    return _servers[0]
