"""Supervise a run from a thread of its own: deadline, standstill, a lost Ray, a stop that hangs.

Each of these ends a run as a signal does: the driver is interrupted, wherever it waits, and leaves
by its usual way, which shuts Ray down, gives the lease back and stores the report. If that way is
blocked, too, a process that exists for the run is ended from here, after its report was stored.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from pipeline.commit.manifest import require_one_key
from pipeline.commit.staging import list_staged
from pipeline.core.errors import InfraError, PipelineError, Stopped
from pipeline.execution import health
from pipeline.execution.cluster import in_flight
from pipeline.planning.tiling import missing_units
from pipeline.process.interrupts import defer_stops, interrupt, reason, stoppable_body
from pipeline.process.keeper import exit_with
from pipeline.process.liveness import last_progress
from pipeline.process.run_scope import current_scope, within
from pipeline.process.shared_notes import current_notes, note
from pipeline.process.terminal import show_error
from pipeline.report.document import Report, RunStatus
from pipeline.runs.context import RunContext
from pipeline.runs.ending import lost_run
from pipeline.runs.ending.save_report import save_report, save_trouble
from pipeline.storage.errors import options_named

log = logging.getLogger(__name__)

_TICK_S = 0.5
# Seconds after the interrupt: Ray's processes are killed, which frees the threads that wait for
# them; then the process ends.
_KILL_RAY_S, _END_S = 12.0, 22.0
_HASTE = 0.1
_REPORT_S = 5.0
_DUMP_S = 8.0
_MAX_MISSING, _MAX_SHOWN = 20, 12

ReportSaver = Callable[[PipelineError], object]
"""Stores the report of a run that ends with an error."""


@contextlib.contextmanager
def supervise(run: RunContext, save_report: ReportSaver) -> Iterator[None]:
    """Watch the run in the body, whose work is `stoppable`; the rest of the body is only timed."""
    watchdog = _Watchdog(run, save_report)
    note(run=lost_run.describe(run))
    watchdog.start()
    try:
        yield
    finally:
        watchdog.done.set()
        note(run=None)


@contextlib.contextmanager
def stoppable(run: RunContext) -> Iterator[None]:
    """Let the run in the body be stopped; the error says how much is left to do.

    Raises:
        Stopped: A signal or the deadline stopped it.
        InfraError: It made no progress, or lost its Ray.
    """
    try:
        with stoppable_body():
            yield
    except PipelineError as error:
        if error is not reason():
            raise
        raise _in_full(run, error) from None


def _in_full(run: RunContext, error: PipelineError) -> PipelineError:
    left = run.record.left_to_do()
    return type(error)(f"{error}: {left}; finished slices are kept, run again to continue")


class _Watchdog(threading.Thread):
    """The thread. It uses the monotonic clock, so that no jump of the time ends a run."""

    def __init__(self, run: RunContext, save_report: ReportSaver) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.done = threading.Event()
        self._run, self._save_report = run, save_report
        self._stall = Stall(run.job.run.stall_s)
        self._stopping_since: float | None = None
        self._has_killed_ray = False
        left_s = math.inf if run.deadline_at_s is None else run.deadline_at_s - time.time()
        self._deadline_at = time.monotonic() + left_s

    def run(self) -> None:
        """Look twice per second until the run is done."""
        while not self.done.wait(_TICK_S):
            now = time.monotonic()
            if reason() is not None or _asked_to_stop():
                self._force_stop(now)
            elif (lost := health.trouble()) is not None:
                interrupt(InfraError(lost))
            elif now >= self._deadline_at:
                interrupt(Stopped(f"deadline {self._run.job.run.deadline} reached"))
            elif self._stall.is_over(now, (*last_progress(), *in_flight.mark())):
                self._report_stall()

    def _report_stall(self) -> None:
        stall_s, (_, what) = self._run.job.run.stall_s, last_progress()
        what = within(_DUMP_S / 3, in_flight.actors_in_trouble) or f"the last step was: {what}"
        message = f"no progress for {stall_s:g} s (run.stall_s), {what}"
        within(_DUMP_S, lambda: _dump(self._run, message))
        interrupt(InfraError(message))

    def _force_stop(self, now: float) -> None:
        """Complete a stop: free the driver if it hangs, then end the process."""
        if self._stopping_since is None:
            self._stopping_since = now
        since_s = now - self._stopping_since
        # Without its head Ray can do nothing, but it waits a minute for the head to come back.
        haste = _HASTE if health.trouble() is not None else 1.0
        if since_s >= haste * _KILL_RAY_S and not self._has_killed_ray:
            self._has_killed_ray = True
            health.kill(health.family())
        if since_s >= haste * _END_S and self._run.options.owns_process:
            self._end()

    def _end(self) -> NoReturn:
        """End the process, after all that its usual way would have done."""
        why = reason() or Stopped(f"{signal.Signals(_asked_to_stop()).name} received")
        error = _in_full(self._run, why)
        health.kill(health.family())
        within(_REPORT_S, lambda: self._save_report(error))
        current_scope().close(_REPORT_S)
        show_error(error, error.exit_code)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        exit_with(error.exit_code)


def _asked_to_stop() -> int:
    """Return the signal that our parent got, even if this process cannot handle it; 0 if none."""
    notes = current_notes()
    return notes.signal if notes is not None else 0


class Stall:
    """Measures how long nothing has changed, in time in which this process could run."""

    def __init__(self, limit_s: float, tick_s: float = _TICK_S) -> None:
        self._limit_s, self._longest_s = limit_s, 4 * tick_s
        self._seen: object = None
        self._at: float | None = None
        self._idle_s = 0.0

    def is_over(self, now: float, mark: object) -> bool:
        """Note the time and a mark of progress; tell whether the mark was the same for too long.

        A process that was stopped (SIGSTOP, a machine asleep) was not idle meanwhile.
        """
        passed_s = min(now - self._at, self._longest_s) if self._at is not None else 0.0
        self._at = now
        self._idle_s = self._idle_s + passed_s if mark == self._seen else 0.0
        self._seen = mark
        return self._idle_s >= self._limit_s


def _dump(run: RunContext, message: str) -> None:
    """Log in short what a run has in flight, and store all of it beside the report."""
    lines = in_flight.operators()
    lines += within(_DUMP_S / 3, in_flight.actors) or []
    run.record.stalled(lines)
    for line in lines[:_MAX_SHOWN]:
        log.warning("in flight: %s", line)
    missing = within(_DUMP_S / 3, lambda: _missing(run)) or []
    path = run.layout.report(run.record.run_id, "in_flight.txt")
    text = "\n".join([message, *lines, *missing, "", *in_flight.stacks()])
    run.store.put(path, text.encode("utf-8", "backslashreplace"))
    log.warning("in flight: all of it, and the driver's stacks: %s", run.store.url(path))


def _missing(run: RunContext) -> list[str]:
    """Describe the first slices without a staged part; those in flight are among them."""
    plan = run.record.plan
    if plan is None:
        return []
    units = missing_units(plan, list_staged(run.store, run.layout.staging(plan.work)))
    lines = [
        f"missing: unit {unit.index} from row {start} on, of {unit.extents[0].path}"
        for unit, starts in units.items()
        for start in (starts or [0])
    ]
    return lines[:_MAX_MISSING]


def run_reported(run: RunContext, execute: Callable[[RunContext], RunStatus]) -> Report:
    """Probe the output, call `execute` under supervision, and store the report.

    Raises:
        PipelineError: Of `execute`; or the output cannot be used, and there is no report.
    """
    with options_named("sink.storage_options"):
        run.store.probe(single_writer=run.job.run.single_writer)
        require_one_key(run.store, run.layout)
    with supervise(run, lambda error: save_trouble(run, error)), run.exports.during(run):
        try:
            with stoppable(run):
                status = execute(run.with_settled_source())
        except BaseException as error:
            with defer_stops():
                save_trouble(run, error)
            raise
        with defer_stops():
            return save_report(run, status, None)
