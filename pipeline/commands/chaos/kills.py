"""Kill processes of a run when given numbers of slices are staged.

Only descendants of the process that was started for it are killed, found by its id.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import psutil

Victim = Literal["actor", "worker", "driver"]

_VICTIMS: tuple[Victim, ...] = ("actor", "worker", "driver")
_POLL_S = 0.02
# What Ray calls its processes while they work; a task is a slice being read, decoded or written.
_TITLES = {"actor": ("ray::MapWorker(",), "worker": ("ray::ReadShards", "ray::MapBatches(")}


@dataclass(frozen=True)
class Kill:
    """Kill a process when a number of slices is staged."""

    victim: Victim
    after_slices: int


@dataclass(frozen=True)
class Killed:
    """One process that was killed."""

    victim: Victim
    title: str
    num_slices: int
    """How many were staged then."""


def choose_kills(num_slices: int, seed: int) -> list[Kill]:
    """Choose when an actor, a worker of another stage and the driver are killed, in this order."""
    dice = random.Random(f"{seed} kills")  # noqa: S311  # hides nothing
    last = max(1, num_slices * 3 // 4)
    moments = sorted(dice.randint(1, last) for _ in range(3))
    return [Kill(victim, at) for victim, at in zip(_VICTIMS, moments, strict=True)]


def carry_out(
    kills: Sequence[Kill], driver: psutil.Popen, progress: Callable[[], int]
) -> list[Killed]:
    """Carry out kills while a run goes on, and wait for its end.

    A worker is killed when it is at work, so that can be later than its moment, or never.

    Args:
        kills: Each of another victim.
        driver: The process of the run.
        progress: Returns how many slices are staged.
    """
    done: list[Killed] = []
    waiting = list(kills)
    while waiting and driver.poll() is None:
        num_slices = progress()
        for kill in [kill for kill in waiting if num_slices >= kill.after_slices]:
            if (title := _kill(kill.victim, driver)) is not None:
                done.append(Killed(kill.victim, title, num_slices))
                waiting.remove(kill)
        time.sleep(_POLL_S)
    driver.wait()
    return done


def _kill(victim: Victim, driver: psutil.Popen) -> str | None:
    """Kill such a process, if there is one at work; return what it was called."""
    if victim == "driver":
        driver.kill()
        return victim
    for title, process in _titled(driver):
        if title.startswith(_TITLES[victim]):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                return title
    return None


def _titled(driver: psutil.Popen) -> Iterator[tuple[str, psutil.Process]]:
    """Yield the processes that the driver has started, and they in turn, by their titles."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in driver.children(recursive=True):
            with contextlib.suppress(psutil.Error, IndexError):
                yield process.cmdline()[0], process
