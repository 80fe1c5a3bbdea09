"""One run of the real command on a Ray of several nodes, with faults injected meanwhile.

When they fall is a matter of progress: of how many slices are committed, never of seconds.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine  # noqa: F401  # says where what tests share lies
import psutil
from support.runs.cli import start
from support.servers.raynodes import RayNodes

DATE = "2026-11-24"
WORKER, NODE, DRIVER, DRAIN = "worker", "node", "driver", "drain"
LOSE, GAIN = "lose", "gain"
"""A node that none replaces, and one more."""
DRAINED_FOR = 2
"""So many more slices are finished before a node that was given notice is taken away."""
NOTICE_S = 30.0
"""It is taken away then at the latest: Ray gives its actors no calls meanwhile, so where all actors
of a stage are there, no slice is finished."""
LIMIT_S = 900.0
POLL_S = 0.05


class Broken(Exception):
    """A promise is broken."""


@dataclass
class Outcome:
    """What became of one seed."""

    seed: int
    wall_s: float = 0.0
    blows: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    """Blows that did not fall, because the run had ended: slices are committed in bursts where the
    one worker that writes was killed."""
    broken: str = ""
    staged_when_killed: int = 0
    """Slices that were committed when the driver was killed: nobody may compute them again."""
    report: dict[str, Any] = field(default_factory=dict)


def num_staged(out: Path) -> int:
    """Slices that are committed."""
    names = (path.name for path in out.glob("_control/*/staging/*/*.parquet"))
    return len({name.rpartition("-")[0] for name in names})


class Disturbed:
    """A run, and those that go on with it after its driver was killed."""

    def __init__(self, nodes: RayNodes, job: str, out: Path, seed: int) -> None:
        self._nodes, self._job, self._out = nodes, job, out
        self._dice = random.Random(seed)
        self._driver: subprocess.Popen[str]
        self._started_s = 0.0
        self.outcome = Outcome(seed)

    def run(self, blows: Sequence[str], num_slices: int) -> Outcome:
        """Run to the end.

        Raises:
            Broken: The run failed or took far too long.
        """
        blows = self._dice.sample(blows, len(blows))
        moments = sorted(self._dice.sample(range(1, num_slices - 2 * DRAINED_FOR), len(blows)))
        self._started_s = time.monotonic()
        self._start()
        try:
            at = 0
            for moment, blow in zip(moments, blows, strict=True):
                at = self._wait_for_slices(min(max(moment, at + 1), num_slices), blow)
                if self._driver.poll() == 0:
                    self.outcome.missed = list(blows[len(self.outcome.blows) :])
                    break
                since_s = time.monotonic() - self._started_s
                self.outcome.blows.append(f"{since_s:.0f} s, {at}: {self._strike(blow)}")
            stdout, stderr = self._driver.communicate(timeout=self._left_s())
        except subprocess.TimeoutExpired:
            raise Broken(f"after {LIMIT_S:g} s the run has not ended") from None
        finally:
            self._kill_driver()
            self.outcome.wall_s = time.monotonic() - self._started_s
        if self._driver.returncode:
            raise Broken(f"the run exits with {self._driver.returncode}: {stderr[-600:]}")
        self.outcome.report = json.loads(stdout.splitlines()[-1])
        return self.outcome

    def _strike(self, blow: str) -> str:
        """Let a blow fall; return what it hit."""
        if blow == DRIVER:
            self.outcome.staged_when_killed = num_staged(self._out)
            self._kill_driver()
            self._start()
        elif blow == WORKER:
            self._wait(lambda: bool(self._nodes.workers()), "a worker")
            workers = self._nodes.workers()
            title = self._dice.choice(sorted(workers))
            with contextlib.suppress(psutil.NoSuchProcess):
                self._dice.choice(workers[title]).kill()
            return f"{blow} {title}"
        elif blow == GAIN:
            self._nodes.add()
        else:
            node = self._dice.choice(self._nodes.nodes)
            if blow == DRAIN:
                goes_at_s = time.monotonic() + NOTICE_S
                self._nodes.drain(node, NOTICE_S)
                number = num_staged(self._out) + DRAINED_FOR
                self._wait_for_slices(number, "a drained node", until_s=goes_at_s)
            self._nodes.kill(node)
            if blow != LOSE:
                self._nodes.add()
        return blow

    def _start(self) -> None:
        command = ("run", self._job, "--date", DATE, "--json", "--quiet")
        self._driver = start(*command, env=self._nodes.environment)

    def _kill_driver(self) -> None:
        if self._driver.poll() is None:
            os.killpg(self._driver.pid, signal.SIGKILL)
            self._driver.wait()

    def _wait_for_slices(self, number: int, what: str, until_s: float = math.inf) -> int:
        self._wait(
            lambda: (
                num_staged(self._out) >= number
                or self._driver.poll() is not None
                or time.monotonic() >= until_s
            ),
            what,
        )
        if self._driver.poll():
            _, stderr = self._driver.communicate()
            raise Broken(f"exit {self._driver.returncode} before {what}: {stderr[-600:]}")
        return num_staged(self._out)

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        while not condition():
            if not self._left_s():
                raise Broken(f"after {LIMIT_S:g} s still waiting for {what}")
            time.sleep(POLL_S)

    def _left_s(self) -> float:
        return max(0.0, self._started_s + LIMIT_S - time.monotonic())
