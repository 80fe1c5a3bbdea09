"""Store the report of a run beside its output, however the run ended."""

from __future__ import annotations

import logging
from typing import Any

from pipeline.context import RunContext
from pipeline.drift import compare_with_before
from pipeline.errors import GateRefused, PartitionBusy, PipelineError, Stopped
from pipeline.render import to_html
from pipeline.report import Status, build_report, to_json

log = logging.getLogger(__name__)


def save_report(run: RunContext, status: Status, error: PipelineError | None) -> dict[str, Any]:
    """Build the report and store it as report.json and report.html."""
    code = error.exit_code if error else 0
    price = run.job.run.price_per_node_hour
    report = compare_with_before(
        run.store,
        build_report(run.record.facts(status, code, str(error) if error else None, price)),
    )
    if status != "nothing_to_do":
        path = run.layout.report
        run.store.put(path(run.record.run_id, "report.json"), to_json(report))
        run.store.put(path(run.record.run_id, "report.html"), to_html(report).encode())
    return report


def save_trouble(run: RunContext, error: PipelineError) -> None:
    """Store the report of a run that failed; if this fails, too, the first error is still told."""
    if isinstance(error, PartitionBusy):
        return
    try:
        save_report(run, _status_of(error), error)
    except PipelineError as further:
        log.warning("no report: %s", further)


def _status_of(error: PipelineError) -> Status:
    if isinstance(error, GateRefused):
        return "refused"
    return "stopped" if isinstance(error, Stopped) else "failed"
