"""Store the report of a run beside its output, however the run ended."""

from __future__ import annotations

import logging
from typing import Any

from pipeline.core.errors import GateRefused, PartitionBusy, PipelineError, Stopped
from pipeline.core.printable import clean_message
from pipeline.process.interrupts import reason
from pipeline.report.document import RunStatus, build_report, to_json
from pipeline.report.history import compare_with_before
from pipeline.report.showing.render import to_html
from pipeline.runs.context import RunContext

log = logging.getLogger(__name__)


def save_report(run: RunContext, status: RunStatus, error: PipelineError | None) -> dict[str, Any]:
    """Build the report and store it as report.json and report.html."""
    code = error.exit_code if error else 0
    price = run.job.run.price_per_node_hour
    report = compare_with_before(
        run.store,
        build_report(run.record.facts(status, code, str(error) if error else None, price)),
    )
    is_stored = status != "nothing_to_do"
    report["output"] |= _places(run, report, is_stored=is_stored)
    if is_stored:
        path = run.layout.report
        run.store.put(path(run.record.run_id, "report.json"), to_json(report))
        run.store.put(path(run.record.run_id, "report.html"), to_html(report).encode())
    return report


def _places(run: RunContext, report: dict[str, Any], *, is_stored: bool) -> dict[str, Any]:
    """Return the paths of the quarantine and the report of a run, if there are any."""
    has_quarantine = report["output"]["uri"] and report["rows"]["quarantined"]
    path = run.layout.report(run.record.run_id, "report.html")
    return {
        "quarantine": run.store.url(run.layout.quarantine) if has_quarantine else None,
        "report": run.store.url(path) if is_stored else None,
    }


def save_trouble(run: RunContext, error: BaseException) -> None:
    """Store the report of a run that failed; if this fails, too, the first error is still shown."""
    if isinstance(error, PartitionBusy):
        return
    ours = _as_ours(error)
    try:
        report = save_report(run, _status_of(ours), ours)
    except Exception as further:  # noqa: BLE001  # what made the run fail may make this fail, too
        log.warning("no report: %s", clean_message(f"{type(further).__name__}: {further}"))
    else:
        error.report = report["output"]["report"]  # type: ignore[attr-defined]


def _as_ours(error: BaseException) -> PipelineError:
    """Return an error with an exit code; that of an unexpected exception is 1."""
    if isinstance(error, PipelineError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return reason() or Stopped("interrupted")
    return PipelineError(clean_message(f"{type(error).__name__}: {error}"))


def _status_of(error: PipelineError) -> RunStatus:
    if isinstance(error, GateRefused):
        return "refused"
    return "stopped" if isinstance(error, Stopped) else "failed"
