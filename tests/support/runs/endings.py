"""Run the command line many times, each in a process forked from one that has imported it.

A start of Python for each of dozens of commands would take most of a minute. As a program: reads
endings as JSON from standard input, `[{"argv": [...], ...}]`, and prints what each one gave.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from support.runs.cli import Result


@dataclass(frozen=True)
class Ending:
    """A command, and what happens to it."""

    argv: Sequence[str]
    failpoint: str = ""
    at_import: str = ""
    """SIGTERM comes when this module is about to be imported."""
    stdout: str = "file"
    """Or full, closed, unread: what the command's standard output is."""
    stderr: str = "file"
    is_impatient: bool = False
    """Wait little between the tries of a call to a store, as the fixture `impatient` does."""
    env: dict[str, str] = field(default_factory=dict)


def run_all(endings: Sequence[Ending], imports: str = "") -> list[Result]:
    """Run commands, one after the other, in processes that have imported some modules."""
    from support.runs.cli import Result, environment  # not in the program: they import much

    done = subprocess.run(
        [sys.executable, "-m", "support.runs.endings", *imports.split()],
        input=json.dumps([asdict(each) for each in endings]),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    return [Result(**each) for each in json.loads(done.stdout)]


class _Interrupts:
    """An importer that finds nothing, but sends this process a signal at a module."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == self._name:
            self._name = ""
            os.kill(os.getpid(), signal.SIGTERM)


def _divert(number: int, kind: str, file: Any) -> None:
    if kind == "closed":
        os.close(number)
        return
    if kind == "unread":
        reading, target = os.pipe()
        os.close(reading)
    else:
        target = os.open("/dev/full", os.O_WRONLY) if kind == "full" else file.fileno()
    os.dup2(target, number)


def _become(ending: dict[str, Any], out: Any, err: Any) -> None:
    _divert(1, ending["stdout"], out)
    _divert(2, ending["stderr"], err)
    sys.stdout = None if ending["stdout"] == "closed" else os.fdopen(1, "w", closefd=False)
    sys.stderr = None if ending["stderr"] == "closed" else os.fdopen(2, "w", closefd=False)
    sys.argv[:] = ["pipeline", *ending["argv"]]
    os.environ.update(ending["env"])
    if ending["failpoint"]:
        os.environ["PIPELINE_FAILPOINT"] = ending["failpoint"]
    if ending["at_import"]:
        assert ending["at_import"] not in sys.modules, "too late"
        sys.meta_path.insert(0, _Interrupts(ending["at_import"]))
    if ending["is_impatient"]:
        from pipeline.core import backoff

        backoff.FIRST_WAIT_S = 0.02
    from pipeline.commands.main import main

    main()


def _run(ending: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        if (pid := os.fork()) == 0:
            try:
                _become(ending, out, err)
            except BaseException:  # noqa: BLE001
                err.write(traceback.format_exc())
                err.flush()
            finally:
                os._exit(99)  # it should have ended itself
        _, status = os.waitpid(pid, 0)
        out.seek(0)
        err.seek(0)
        code = os.waitstatus_to_exitcode(status)
        return {"code": code, "stdout": out.read(), "stderr": err.read()}


def _main() -> None:
    for module in sys.argv[1:]:
        __import__(module)
    found = [_run(each) for each in json.load(sys.stdin)]
    print(json.dumps(found))


if __name__ == "__main__":
    _main()
