"""Do several dates at a time: processes that each do one after the other, on a part of one Ray.

A run needs a process of its own, for signals, Ray's DataContext and what it restores at its end.
This one starts the Ray, hands out the dates and passes a stop on. A worker ends with it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from pipeline.core.errors import InfraError, JobError, Stopped
from pipeline.execution.cluster.connect import connect, connected_address
from pipeline.execution.cluster.sharing import RayPart, share_ray
from pipeline.operations.weeks.one_date import DateRun, Dates
from pipeline.operations.weeks.turns import Found, Queue
from pipeline.planning.allocation import Hardware
from pipeline.process.interrupts import handle_signals
from pipeline.process.keeper import how_it_ended
from pipeline.process.life import new_life
from pipeline.process.parent_death import die_with
from pipeline.process.screen import log_to_stderr
from pipeline.report.showing.progress import Progress, Silent

_WORKER = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from pipeline.operations.weeks.workers import serve; "
    "serve(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))"
)
_END_S = 30.0


class Worker:
    """A process that does one date after the other."""

    def __init__(self, dates: Dates, part: RayPart) -> None:
        self.pipe, theirs = Pipe()
        self.day: dt.date | None = None
        """What it does now."""
        level = logging.getLogger("pipeline").getEffectiveLevel()
        with theirs:
            numbers = map(str, (theirs.fileno(), os.getpid(), level))
            self._process = subprocess.Popen(  # noqa: S603  # this very Python
                [sys.executable, "-c", _WORKER, json.dumps(sys.path), *numbers],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a terminal's Ctrl-C is passed on by this process alone
            )
        self.pipe.send((dates, part))

    def begin(self, day: dt.date) -> None:
        """Let it do a date."""
        self.day = day
        with contextlib.suppress(ConnectionError):  # it has ended: `end_day` says how
            self.pipe.send(day)

    def end_day(self) -> tuple[dt.date, DateRun, bool]:
        """Return a date that is done, as `Dates.do` does; for one whose worker ended, that."""
        day, self.day = self.day, None
        assert day is not None, "asked of one that works"
        try:
            return day, *self.pipe.recv()
        except (EOFError, ConnectionError):
            code = self._process.wait()
        how = f"the process of this date ended ({how_it_ended(code)}); run again to go on"
        is_stopped = code == Stopped.exit_code
        return day, DateRun.failed(day, (Stopped if is_stopped else InfraError)(how)), is_stopped

    def stop(self) -> None:
        """Let it stop as a run does on a signal."""
        self._process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """End it, which has nothing to do."""
        self.pipe.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def several(dates: Dates, left: Queue, found: Found, progress: Progress) -> bool:
    """Do several dates at a time; see `turns.Way`.

    Raises:
        JobError: The Ray is too small for so many.
    """
    with new_life(), share_ray(), connect(dates.options.address) as ray:
        _require_room(dates, ray.hardware, left[0])
        part = RayPart(connected_address(), dates.max_active, is_embedded=not ray.on_cluster)
        with contextlib.ExitStack() as stack:
            workers = [Worker(dates, part) for _ in range(min(dates.max_active, len(left)))]
            for each in workers:
                stack.callback(each.close)
            return _hand_out(workers, left, found, progress)


def _hand_out(workers: Sequence[Worker], left: Queue, found: Found, progress: Progress) -> bool:
    num_dates, is_ending, is_stopped = len(left) + len(found), False, False
    while True:
        try:
            for worker in workers:
                if worker.day is None and left and not is_ending:
                    worker.begin(left.popleft())
            active = {each.pipe: each for each in workers if each.day is not None}
            if not active:
                return is_stopped
            for pipe in wait([*active]):
                assert isinstance(pipe, Connection)
                day, done, has_stopped = active[pipe].end_day()
                found[day] = done
                progress.phase(f"date {done.date}: {done.outcome}, {len(found)} of {num_dates}")
                is_ending |= has_stopped or done.exit_code == InfraError.exit_code
                if has_stopped and not is_stopped:
                    is_stopped = True
                    _stop(workers)
        except KeyboardInterrupt:
            is_stopped = is_ending = True
            _stop(workers)


def _stop(workers: Sequence[Worker]) -> None:
    for each in workers:
        if each.day is not None:
            each.stop()


def _require_room(dates: Dates, hardware: Hardware, day: dt.date) -> None:
    """Make sure that each date has a processor, and a GPU if its actors need one.

    Raises:
        JobError: Says how many dates fit.
    """
    resources = dates.of(day).resources
    uses_gpus = bool(resources.num_gpus or resources.actors_per_gpu)
    has, unit = (hardware.gpus, "GPUs") if uses_gpus else (hardware.cpus, "CPUs")
    if dates.max_active > max(1, math.floor(has)):
        raise JobError(
            f"max-active {dates.max_active}: this Ray has {has:g} {unit}, for at most "
            f"{max(1, math.floor(has))} dates at a time"
        )


def serve(descriptor: int, parent: int, level: int) -> None:
    """Be a worker: do whatever dates come, until no more do."""
    die_with(parent)
    handle_signals()
    log_to_stderr(logging.WARNING)
    logging.getLogger("pipeline").setLevel(level)
    with contextlib.suppress(EOFError, ConnectionError, KeyboardInterrupt):
        pipe = Connection(descriptor)
        dates, part = pipe.recv()
        address = None if part.is_embedded else part.address
        dates = replace(dates, options=replace(dates.options, address=address, owns_process=True))
        with share_ray(part):
            while True:
                pipe.send(dates.do(pipe.recv(), Silent()))
    os._exit(0)  # unloading what Ray and Arrow have loaded takes most of a second
