"""Run the real command line as a user does, in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from models import LABELS, TRANSFORM

from support import HANG_S
from support.inputs.photos import build_images
from support.runs.checkout import PYTHONPATH
from support.servers.commandserver import CommandServer


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        """The document on the last line of stdout."""
        return json.loads(self.stdout.splitlines()[-1])


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a user: no cluster and no token named, the tests' models importable."""
    left_out = ("RAY_ADDRESS", "RAY_AUTH", "PIPELINE_FAILPOINT")
    env = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
    env["PYTHONPATH"] = PYTHONPATH
    env["PIPELINE_ALLOW_IMPORT"] = "models"
    return {**env, **(extra or {})}


class Sharing:
    """Where commands run that need no process and no Ray of their own."""

    def __init__(self) -> None:
        self.server: Callable[[], CommandServer] | None = None
        """Those that may share a process and its Ray; None: each has its own."""
        self.forks: Callable[[], CommandServer] | None = None
        """Those that need no Ray, in forks of one process; None: there are none."""


SHARING = Sharing()


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipeline", *arguments]


def pipeline(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    timeout_s: float = HANG_S,
    stdout: str = "file",
    stderr: str = "file",
) -> Result:
    """Run `pipeline ARGUMENTS` to its end.

    Where a test shares a Ray, commands without an environment and an address of their own do; where
    it needs none, those without an address run in forks, and jobs in a loop. The standard streams
    of these may also be full, closed or unread.
    """
    server = SHARING.forks or (None if env else SHARING.server)
    if server and "--address" not in arguments:
        ended = server().run(
            *arguments,
            environment=environment(env),
            timeout_s=timeout_s,
            streams=(stdout, stderr),
        )
        result = Result(ended.code, ended.stdout, ended.stderr)
    else:
        result = _ended(command(*arguments), env, timeout_s)
    assert "DeprecationWarning" not in result.stderr  # it is ours to cure, not the user's to read
    return result


def run_python(
    program: str,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    timeout_s: float = HANG_S,
) -> Result:
    """Run a program to its end, in a Python of its own."""
    return _ended([sys.executable, "-c", program, *arguments], env, timeout_s)


def _ended(words: list[str], env: Mapping[str, str] | None, timeout_s: float) -> Result:
    done = subprocess.run(
        words,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


WITHOUT_RAY = """
from pipeline.commands.main import main
from support.runs.without_ray import without_ray

with without_ray():
    main()
"""


def start(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start `pipeline ARGUMENTS` as the leader of a process group of its own.

    Where a test needs no Ray, jobs run in a loop.
    """
    program = [sys.executable, "-c", WITHOUT_RAY, *arguments]
    return subprocess.Popen(
        program if SHARING.forks else command(*arguments),
        env=environment(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def working(process: subprocess.Popen[Any]) -> psutil.Process:
    """The process of a command that works; its parent only looks after it."""
    parent = psutil.Process(process.pid)
    while not (children := parent.children()) and process.poll() is None:
        time.sleep(0.01)
    return children[0]


def survivors(processes: list[psutil.Process], timeout_s: float = 120.0) -> list[psutil.Process]:
    """Those that have not ended, after a while for the last ones to go."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def left_by(program: str) -> tuple[psutil.Process, list[str]]:
    """Kill a Python program when it has printed the number of a process that it has started.

    Returns:
        That process, and what else stood on the line.
    """
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        pid, *words = process.stdout.readline().split()
        left = psutil.Process(int(pid))
        process.kill()
    return left, words


def write_job(path: Path, source: Mapping[str, Any], sink_uri: str, **sections: Any) -> str:
    """Write a job file; the model is `models:colours` unless a section says otherwise.

    Eager torch is pinned unless it does, or says `runtime: None`: what other tests have measured
    changes nothing, and no process tries another runtime if the machine is slow.

    One actor that decodes, as on CPUs, takes least to start; `resources=None` leaves both open. No
    row is read again for the page of the report.
    """
    job: dict[str, Any] = {
        "source": dict(source),
        "model": {"factory": "models:colours", "labels": LABELS},
        "transform": TRANSFORM,
        "sink": {"uri": sink_uri, "partition": "date=${date}"},
        "resources": {"max_actors": 1, "decode_in": "actors"},
        "report": {"samples": 0},
    }
    for name, values in sections.items():
        if values is None:
            job.pop(name)
        else:
            job[name] = {**({} if name == "model" else job.get(name, {})), **values}
    job["model"] = {"runtime": "eager", **job["model"]}
    path.write_text(yaml.safe_dump(job))
    return str(path)


def photos_job(
    folder: Path, num_photos: int, *, num_bad: int = 0, seed: int = 3, **sections: Any
) -> str:
    """Write photos, and a job over them, into a folder."""
    build_images(folder / "images", num_photos, seed=seed, num_bad=num_bad)
    source = {"uri": str(folder / "images"), "format": "images"}
    return write_job(folder / "job.yaml", source, str(folder / "out"), **sections)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Poll until a condition holds or the process has ended."""
    while not condition() and process.poll() is None:
        try:
            process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
