"""Kill processes of a run at moments that are conditions of its progress, as a bad night would.

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
_WAIT_S = 10.0
# What Ray calls its processes while they work; a task is a slice being read, decoded or written.
_TITLES = {"actor": ("ray::MapWorker(",), "worker": ("ray::ReadShards", "ray::MapBatches(")}


@dataclass(frozen=True)
class Kill:
    """Kill a process when so many slices are staged."""

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
    """Carry out kills, one after the other, as far as the driver lives so long.

    Args:
        kills: In order of time.
        driver: The process of the run; it is waited for if it is not killed.
        progress: Returns how many slices are staged.
    """
    done: list[Killed] = []
    for kill in kills:
        if not _wait(driver, lambda kill=kill: progress() >= kill.after_slices):  # type: ignore[misc]
            break
        if (title := _kill(kill.victim, driver)) is not None:
            done.append(Killed(kill.victim, title, progress()))
    driver.wait()
    return done


def _wait(
    driver: psutil.Popen, is_reached: Callable[[], bool], limit_s: float = float("inf")
) -> bool:
    until_s = time.monotonic() + limit_s
    while driver.poll() is None and time.monotonic() < until_s:
        if is_reached():
            return True
        time.sleep(_POLL_S)
    return False


def _kill(victim: Victim, driver: psutil.Popen) -> str | None:
    """Kill such a process, when there is one at work; return what it was called."""
    if victim == "driver":
        driver.kill()
        return "driver"
    found: list[tuple[str, psutil.Process]] = []
    titles = _TITLES[victim]

    def is_there() -> bool:
        found[:] = [pair for pair in _titled(driver) if pair[0].startswith(titles)]
        return bool(found)

    if not _wait(driver, is_there, _WAIT_S):
        return None
    title, process = found[0]
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
        return title
    return None


def _titled(driver: psutil.Popen) -> Iterator[tuple[str, psutil.Process]]:
    for process in descendants(driver):
        with contextlib.suppress(psutil.Error, IndexError):
            yield process.cmdline()[0], process


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """Return the processes that a process has started, and they in turn."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return list(process.children(recursive=True))
    return []
