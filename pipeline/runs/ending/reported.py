"""Carry out a run so that, however it ends, it has a report."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.process.interrupts import defer_stops
from pipeline.report.document import Report, RunStatus
from pipeline.runs.context import RunContext
from pipeline.runs.ending.save_report import save_report, save_trouble
from pipeline.runs.ending.supervisor import stoppable, supervise
from pipeline.storage.errors import options_named


def run_reported(run: RunContext, execute: Callable[[RunContext], RunStatus]) -> Report:
    """Probe the output, do what `execute` does under supervision, and store the report.

    Raises:
        PipelineError: As `execute`, or the output cannot be used; then there is no report.
    """
    with options_named("sink.storage_options"):
        run.store.probe(single_writer=run.job.run.single_writer)
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
