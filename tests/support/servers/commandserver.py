"""A process that runs `pipeline` commands one after the other: a command costs what it does alone.

In forks of itself, which have imported all that commands need, or in itself, on a Ray that it
starts once. Runs of jobs in forks do without Ray, unless a command names a cluster. A fork costs
milliseconds, ends as a user's command does, and leaves nothing behind. Its memory can be told from
that of the imports: the system says of each fork how much it held at most, and the fork begins with
what the process holds.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from support import HANG_S

MORE_ADDRESSES_BYTES = 8 << 30
"""Of addresses, so that a command that asks for all memory fails instead of the machine."""
MAX_CPU_S = 60
END_S = 60.0
TRACEBACK_S = 5.0
READY = "ready"
OF_RUNS = (
    *("pipeline.commands.app", "pipeline.operations.run", "pipeline.operations.plan"),
    *("support.runs.without_ray", "pipeline.runs.preparing.one_row"),
    *("pipeline.inference.engines.torch_engine", "pipeline.preprocessing.images.image_rows"),
    *("pipeline.commit.staging", "pipeline.published.verify"),
    *("pipeline.report.render", "pipeline.published.sheets", "models"),
    *("rich.console", "rich.table", "jinja2", "PIL.JpegImagePlugin", "PIL.PngImagePlugin"),
)
"""What most commands import that run jobs."""
OF_TRANSFORMERS = ("transformers.modeling_utils", "transformers.generation.utils")
"""What every class of transformers imports, torchvision among it: seconds."""
OF_CHECKS = ("pipeline.commands.app", "pipeline.dataflow")
"""What a run imports until it needs Ray."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """Exit code; minus the signal that killed it."""
    stdout: str
    stderr: str
    more_bytes: int
    """What it held at most beyond what its process began with."""


class CommandServer:
    """The process; it starts on entering and ends on leaving."""

    def __init__(
        self,
        environment: Mapping[str, str],
        imports: Sequence[str] = OF_RUNS,
        *,
        on_one_ray: bool = False,
        is_limited: bool = False,
    ) -> None:
        """Take the environment that it starts with.

        Args:
            imports: Modules that it imports before all commands.
            on_one_ray: Commands run in the process itself, with its environment, on its Ray.
            is_limited: Commands are limited in memory and processor time.
        """
        threads = {"OMP_NUM_THREADS": "1"} if is_limited else {}  # each takes addresses
        self._environment = {**environment, **threads}
        self._imports, self._is_limited, self._on_one_ray = imports, is_limited, on_one_ray

    def __enter__(self) -> CommandServer:
        self._start()
        return self

    def _start(self) -> None:
        asked = {
            "imports": self._imports,
            "is_limited": self._is_limited,
            "on_one_ray": self._on_one_ray,
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(asked)],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=self._on_one_ray,
        )
        assert self._answer(HANG_S) == READY

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def run(
        self,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        folder: str = "",
        timeout_s: float = HANG_S,
        streams: Sequence[str] = ("file", "file"),
    ) -> Ended:
        """Run `pipeline ARGUMENTS`.

        Args:
            environment: All of it; None: that which the process has started with.
            folder: Where it runs; left out, the current folder.
            streams: What its standard output and error are: file, full, closed, or unread.

        Raises:
            RuntimeError: The process has ended, or the command takes longer than `timeout_s`.
        """
        if self._process.poll() is not None:  # a command before has ended it
            self.__exit__()
            self._start()
        assert self._process.stdin is not None
        with tempfile.TemporaryDirectory(prefix="command-") as place:
            files = Path(place, "stdout"), Path(place, "stderr")
            where = folder or os.getcwd(), [*map(str, files)], streams
            asked = (arguments, environment and dict(environment), *where)
            self._process.stdin.write(f"{json.dumps(asked)}\n")
            self._process.stdin.flush()
            answer = None
            try:
                answer = self._answer(timeout_s)
            finally:
                if answer is None:  # not in time, or the test is over
                    if self._on_one_ray:  # have it say where it stands
                        self._process.send_signal(signal.SIGUSR1)
                        with contextlib.suppress(subprocess.TimeoutExpired):
                            self._process.wait(TRACEBACK_S)
                    self._process.kill()  # and with it the command
                    self.__exit__()
                    self._start()
            out, err = (path.read_text() if path.exists() else "" for path in files)
        if answer is None:
            raise RuntimeError(f"{arguments} did not end:\n{out}\n{err}")
        code, more_bytes = answer
        return Ended(code, out, err, more_bytes)

    def _answer(self, timeout_s: float) -> Any:
        """Return what the process answers; None if it ends, or does not in time."""
        assert self._process.stdout is not None
        poll = select.poll()  # `select` takes no file descriptor beyond 1,023
        poll.register(self._process.stdout, select.POLLIN)
        line = self._process.stdout.readline() if poll.poll(timeout_s * 1000) else ""
        return json.loads(line) if line else None


def _serve(imports: Sequence[str], *, is_limited: bool, on_one_ray: bool) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if on_one_ray:
        _serve_on_one_ray(answers)
        return
    for name in imports:
        importlib.import_module(name)
    from pipeline.process.confined import start_server

    start_server()  # for all commands, so that its imports are made once
    gc.collect()
    gc.freeze()
    _tell(answers, READY)
    for line in sys.stdin:
        before = psutil.Process().memory_info().rss
        pid = os.fork()
        if not pid:
            try:
                _become(*json.loads(line), is_limited=is_limited)
            finally:
                os._exit(99)  # it should have ended itself
        _, status, used = os.wait4(pid, 0)
        _tell(answers, [os.waitstatus_to_exitcode(status), used.ru_maxrss * 1024 - before])


def _serve_on_one_ray(answers: Any) -> None:
    from pipeline.commands import main
    from pipeline.execution.caller import share_ray
    from pipeline.process import terminal
    from pipeline.process.run_scope import new_scope

    terminal.hold_streams()
    faulthandler.register(signal.SIGUSR1, file=sys.stderr)
    with share_ray():
        _tell(answers, READY)
        for line in sys.stdin:
            arguments, _, _, files, states = json.loads(line)
            _divert(states, files)
            sys.argv[:] = ["pipeline", *arguments]
            with new_scope():
                code = main._guard(main._command)
            _divert(states, [os.devnull, os.devnull])
            _tell(answers, [code, 0])


def _tell(answers: Any, value: Any) -> None:
    answers.write(f"{json.dumps(value)}\n")
    answers.flush()


def _become(
    arguments: list[str],
    environment: dict[str, str] | None,
    folder: str,
    files: list[str],
    streams: list[str],
    *,
    is_limited: bool,
) -> None:
    """Be the command, with its standard output and error where they are wanted."""
    from pipeline.commands import main
    from pipeline.process.parent_death import die_with
    from support.runs.without_ray import without_ray

    die_with(os.getppid())
    if is_limited:
        addresses = psutil.Process().memory_info().vms + MORE_ADDRESSES_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))
        resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    _divert(streams, files)
    if environment is not None:
        os.environ.clear()
        os.environ.update(environment)
        paths = environment.get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:0] = [path for path in paths if path not in sys.path]
    sys.argv[:] = ["pipeline", *arguments]
    with without_ray():
        main.main()


def _divert(states: Sequence[str], files: Sequence[str]) -> None:
    """Let the standard streams go where they are wanted; Ray's own talk goes where it did."""
    for name, state, path in zip(("stdout", "stderr"), states, files, strict=True):
        stream = getattr(sys, name)
        stream.flush()
        if state == "closed":
            os.close(stream.fileno())
            setattr(sys, name, None)
            continue
        if state == "unread":
            reading, target = os.pipe()
            os.close(reading)
        else:
            path = "/dev/full" if state == "full" else path
            target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(target, stream.fileno())
        os.close(target)


if __name__ == "__main__":
    _serve(**json.loads(sys.argv[1]))
