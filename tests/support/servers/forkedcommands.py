"""A process that has imported all that commands need, and runs each command in a fork of itself.

Runs of jobs do without Ray, unless a command names a cluster. A command costs milliseconds, ends as
a user's does, and leaves nothing behind in the process. Its memory can be told from that of the
imports: the system says of each fork how much it held at most, and the fork begins with what the
process holds.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

MORE_ADDRESSES_BYTES = 8 << 30
"""Of addresses, so that a command that asks for all memory fails instead of the machine."""
MAX_CPU_S = 60
TIMEOUT_S = 240.0
READY = "ready"
OF_RUNS = (
    *("pipeline.commands.app", "pipeline.operations.run", "pipeline.operations.plan"),
    *("pipeline.execution.local", "pipeline.runs.preparing.one_row"),
    *("pipeline.inference.engines.torch_engine", "pipeline.preprocessing.images.images"),
    *("pipeline.commit.staging", "pipeline.commit.published.verify"),
    *("pipeline.report.showing.render", "pipeline.runs.samples.sheets", "models"),
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


class ForkedCommands:
    """The process; it starts on entering and ends on leaving."""

    def __init__(
        self, environment: Mapping[str, str], imports: Sequence[str] = OF_RUNS, *warm: Path
    ) -> None:
        """Take the environment that it starts with.

        Args:
            imports: Modules that it imports before all commands.
            warm: Model directories that are read once before all commands; these are then limited
                in memory and processor time.
        """
        threads = {"OMP_NUM_THREADS": "1"} if warm else {}  # each takes addresses
        self._environment = {**environment, **threads}
        self._imports, self._warm = imports, warm

    def __enter__(self) -> ForkedCommands:
        self._start()
        return self

    def _start(self) -> None:
        asked = {"imports": self._imports, "warm": [*map(str, self._warm)]}
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(asked)],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer(TIMEOUT_S) == READY

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(
        self,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        folder: str = "",
        timeout_s: float = TIMEOUT_S,
        streams: Sequence[str] = ("file", "file"),
    ) -> Ended:
        """Run `pipeline ARGUMENTS`.

        Args:
            environment: All of it; None: that which the process has started with.
            folder: Where it runs; left out, the current folder.
            streams: What its standard output and error are: file, full, closed, or unread.

        Raises:
            RuntimeError: The command takes longer than `timeout_s`.
        """
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
                    self._process.kill()  # and with it the command
                    self.__exit__()
                    self._start()
            out, err = (path.read_text() if path.exists() else "" for path in files)
        if answer is None:
            raise RuntimeError(f"{arguments} did not end:\n{out}\n{err}")
        code, more_bytes = answer
        return Ended(code, out, err, more_bytes)

    def _answer(self, timeout_s: float) -> Any:
        """Return what the process answers; None if it does not in time."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        return json.loads(self._process.stdout.readline()) if ready else None


def _serve(imports: Sequence[str], warm: Sequence[str]) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in imports:
        importlib.import_module(name)
    if warm:
        from pipeline.models.directories.opening import read_facts

        for folder in warm:
            read_facts(Path(folder))
    gc.collect()
    gc.freeze()
    _tell(answers, READY)
    for line in sys.stdin:
        before = psutil.Process().memory_info().rss
        pid = os.fork()
        if not pid:
            try:
                _become(*json.loads(line), is_limited=bool(warm))
            finally:
                os._exit(99)  # it should have ended itself
        _, status, used = os.wait4(pid, 0)
        _tell(answers, [os.waitstatus_to_exitcode(status), used.ru_maxrss * 1024 - before])


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
    from pipeline.execution.caller import without_ray
    from pipeline.process.parent_death import die_with

    die_with(os.getppid())
    if is_limited:
        addresses = psutil.Process().memory_info().vms + MORE_ADDRESSES_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))
        resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream, state, path in zip(("stdout", "stderr"), streams, files, strict=True):
        _divert(stream, state, path)
    if environment is not None:
        os.environ.clear()
        os.environ.update(environment)
        paths = environment.get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:0] = [path for path in paths if path not in sys.path]
    sys.argv[:] = ["pipeline", *arguments]
    with without_ray():
        main.main()


def _divert(stream: str, state: str, path: str) -> None:
    number = {"stdout": 1, "stderr": 2}[stream]
    if state == "closed":
        os.close(number)
        setattr(sys, stream, None)
        return
    if state == "unread":
        reading, target = os.pipe()
        os.close(reading)
    else:
        path = "/dev/full" if state == "full" else path
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(target, number)
    os.close(target)


if __name__ == "__main__":
    _serve(**json.loads(sys.argv[1]))
