"""A process that has imported all that commands need, and runs each command in a fork of itself.

A command costs milliseconds, and its memory can be told from that of the imports: the system says
of each fork how much it held at most, and the fork begins with what the process holds.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

MORE_ADDRESSES_BYTES = 8 << 30
"""Of addresses, so that a command that asks for all memory fails instead of the machine."""
MAX_CPU_S = 60
READY = "ready"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """Exit code; minus the signal that killed it."""
    stderr: str
    more_bytes: int
    """What it held at most beyond what its process began with."""


class ForkedCommands:
    """The process; it starts on entering and ends on leaving."""

    def __init__(self, environment: Mapping[str, str], warm: Path) -> None:
        """Take the environment, and a model directory that is read once before all commands."""
        self._environment, self._warm = {**environment, "OMP_NUM_THREADS": "1"}, warm

    def __enter__(self) -> ForkedCommands:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self._warm)],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == READY
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def run(self, *arguments: str, stderr: Path) -> Ended:
        """Run `pipeline ARGUMENTS`."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps([arguments, str(stderr)])}\n")
        self._process.stdin.flush()
        code, more_bytes = self._answer()
        return Ended(code, stderr.read_text(), more_bytes)

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def _serve(warm: Path) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _import_all(warm)
    _tell(answers, READY)
    for line in sys.stdin:
        arguments, stderr = json.loads(line)
        before = psutil.Process().memory_info().rss
        pid = os.fork()
        if not pid:
            _run(arguments, stderr)
        _, status, used = os.wait4(pid, 0)
        _tell(answers, [os.waitstatus_to_exitcode(status), used.ru_maxrss * 1024 - before])


def _tell(answers: Any, value: Any) -> None:
    answers.write(f"{json.dumps(value)}\n")
    answers.flush()


def _import_all(warm: Path) -> None:
    import ray.data  # noqa: F401

    import pipeline.commands.app
    import pipeline.dataflow  # noqa: F401
    from pipeline.models.directories.opening import read_facts

    read_facts(warm)


def _run(arguments: list[str], stderr: str) -> None:
    """Be the command: limited, with its standard error in a file."""
    from pipeline.commands import main

    addresses = psutil.Process().memory_info().vms + MORE_ADDRESSES_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    opened = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(opened, stream)
    sys.argv[:] = ["pipeline", *arguments]
    main.main()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
