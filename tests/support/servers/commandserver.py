"""A process that runs `pipeline` commands one after the other on one Ray, which it starts once.

A command costs what it does, not the start of Python, of Ray and of workers.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 60.0
TRACEBACK_S = 5.0


class CommandServer:
    """The process; it starts on entering and ends, with its Ray, on leaving."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)

    def __enter__(self) -> CommandServer:
        self._start()
        return self

    def _start(self) -> None:
        reading, writing = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(writing)],
            env=self._environment,
            stdin=subprocess.PIPE,
            text=True,
            pass_fds=[writing],
            start_new_session=True,
        )
        os.close(writing)
        self._answers = os.fdopen(reading)

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()

    def run(self, arguments: tuple[str, ...], timeout_s: float) -> tuple[int, str, str]:
        """Run `pipeline ARGUMENTS`; return its exit code, stdout and stderr.

        Raises:
            RuntimeError: The process has ended, or the command takes longer than `timeout_s`.
        """
        if self._process.poll() is not None:  # a command before has ended it
            self.__exit__()
            self._start()
        assert self._process.stdin is not None
        with tempfile.TemporaryDirectory(prefix="command-") as folder:
            asked = {"arguments": arguments, "folder": folder}
            self._process.stdin.write(f"{json.dumps(asked)}\n")
            self._process.stdin.flush()
            ready, _, _ = select.select([self._answers], [], [], timeout_s)
            code = self._answers.readline() if ready else ""
            if not ready:  # have it say where it stands
                self._process.send_signal(signal.SIGUSR1)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(TRACEBACK_S)
            out, err = (
                path.read_text() if path.exists() else ""
                for path in (Path(folder, "stdout"), Path(folder, "stderr"))
            )
            if not code:
                self._process.kill()
                self._process.wait()
                raise RuntimeError(f"{arguments} did not end:\n{out}\n{err}")
        return int(code), out, err


def _serve(answers: int) -> None:
    from pipeline.commands import main
    from pipeline.execution.caller import share_ray
    from pipeline.process import streams
    from pipeline.process.life import new_life

    streams.hold()
    faulthandler.register(signal.SIGUSR1, file=sys.stderr)
    with share_ray(), os.fdopen(answers, "w") as out:
        for line in sys.stdin:
            asked: dict[str, Any] = json.loads(line)
            _write_to(Path(asked["folder"], "stdout"), Path(asked["folder"], "stderr"))
            sys.argv[:] = ["pipeline", *asked["arguments"]]
            with new_life():
                code = main._guard(main._command)
            _write_to(Path(os.devnull), Path(os.devnull))
            out.write(f"{code}\n")
            out.flush()


def _write_to(stdout: Path, stderr: Path) -> None:
    """Let the standard streams write to files; Ray's own talk goes where Ray has diverted it."""
    for stream, path in ((sys.stdout, stdout), (sys.stderr, stderr)):
        stream.flush()
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, stream.fileno())
        os.close(opened)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
