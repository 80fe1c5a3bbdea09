"""Run the user's own job, by the real command in processes of its own, over inputs in a folder."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil

from pipeline.commands.chaos.kills import Kill, Killed, carry_out
from pipeline.commit.layout import Layout, parse_staged_name
from pipeline.core.environment import CHAOS_OF, FAILPOINT
from pipeline.process.parent_death import tied_to

_DIES_S = 10.0


@dataclass(frozen=True)
class Command:
    """What the user has typed, and what is changed: `pipeline run JOB ...`."""

    job: str
    date: str
    overrides: Sequence[str]
    allow_import: Sequence[str]
    folder: Path
    """Where everything happens."""

    def arguments(self, changes: Mapping[str, Any], sink: Path) -> list[str]:
        """Return the command line for a sink."""
        own = {**changes, "sink.uri": str(sink), "sink.storage_options": {}}
        options = [("--set", text) for text in self.overrides]
        options += [("--set", f"{name}={json.dumps(value)}") for name, value in own.items()]
        options += [("--allow-import", prefix) for prefix in self.allow_import]
        flat = [part for option in options for part in option]
        command = [sys.executable, "-m", "pipeline", "run", self.job, "--date", self.date]
        return [*command, *flat, "--json", "--quiet"]


@dataclass(frozen=True)
class FinishedRun:
    """One run that has ended, or was ended."""

    code: int
    document: Mapping[str, Any]
    """Its report, or what it said of its error; empty if it was killed."""
    seconds: float
    slices_before: int
    """Slices that were staged when it began."""
    killed: Sequence[Killed] = ()
    dies_at: str | None = None
    """The failpoint at which it was to kill itself."""

    @property
    def error(self) -> str:
        """Return what it said, for an error."""
        return str(self.document.get("error") or f"it ended with exit code {self.code}")


def staged_slices(sink: Path, layout: Layout) -> int:
    """Count the slices that are staged in a sink on local disk."""
    folder = sink / layout.control / "staging"
    names = (path.name for path in folder.glob("*/*.parquet"))
    return len({key for name in names if (key := parse_staged_name(name)) is not None})


def run_once(
    command: Command,
    changes: Mapping[str, Any],
    sink: Path,
    layout: Layout,
    *,
    environment: Mapping[str, str] | None = None,
    kills: Sequence[Kill] = (),
    dies_at: str | None = None,
) -> FinishedRun:
    """Run the job to its end.

    Args:
        changes: Fields of the job that differ, `section.field` -> value.
        kills: What is killed meanwhile.
        dies_at: The failpoint at which the driver kills itself.
    """
    own = {CHAOS_OF: str(command.folder), **(environment or {})}
    own |= {FAILPOINT: f"{dies_at}:kill"} if dies_at else {}
    inherited = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", FAILPOINT)}
    before, started = staged_slices(sink, layout), perf_counter()
    log = command.folder / "logs" / f"{len(list(command.folder.glob('logs/*.err'))):02d}"
    log.parent.mkdir(exist_ok=True)
    with open(f"{log}.out", "wb") as out, open(f"{log}.err", "wb") as err:
        driver = psutil.Popen(
            tied_to(os.getpid(), command.arguments(changes, sink)),
            env={**inherited, **own},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        try:
            killed = carry_out(kills, driver, lambda: staged_slices(sink, layout))
        finally:
            if driver.poll() is None:  # this command itself is interrupted
                driver.kill()
                driver.wait()
    seconds = perf_counter() - started
    document = _last_document(Path(f"{log}.out"))
    return FinishedRun(driver.returncode, document, seconds, before, killed, dies_at)


def _last_document(path: Path) -> Mapping[str, Any]:
    lines = path.read_text("utf-8", "replace").splitlines()
    with contextlib.suppress(ValueError, IndexError):
        document = json.loads(lines[-1])
        return document if isinstance(document, dict) else {}
    return {}


@contextlib.contextmanager
def no_process_left(folder: Path) -> Iterator[None]:
    """End what is left of all runs in a folder: a driver that is killed leaves Ray's processes."""
    try:
        yield
    finally:
        left = [
            process
            for process in psutil.process_iter(["environ"])
            if (process.info["environ"] or {}).get(CHAOS_OF) == str(folder)
        ]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=_DIES_S)
