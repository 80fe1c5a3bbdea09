"""Store the report of a run beside its output, however the run ended."""

from __future__ import annotations

import logging

from pipeline.commit.layout import REPORT_PAGE
from pipeline.core.errors import GateRefused, PartitionBusy, PipelineError, Stopped
from pipeline.core.failures import SystematicFailure
from pipeline.core.printable import clean_message
from pipeline.gates.golden import GoldenRefused
from pipeline.process.interrupts import as_ours
from pipeline.report.document import Report, RunStatus, to_json
from pipeline.report.earlier_reports import compare_with_before, past_reports
from pipeline.report.render import to_html
from pipeline.runs.context import RunContext

log = logging.getLogger(__name__)


def save_report(run: RunContext, status: RunStatus, error: PipelineError | None) -> Report:
    """Build the report and store it as report.json and report.html."""
    code = error.exit_code if error else 0
    price = run.job.run.price_of(run.record.node_labels)
    report = run.record.report(status, code, str(error) if error else None, price)
    is_stored = status != "nothing_to_do"
    # The store may be the cause of a failed run, so it is not asked for earlier reports then.
    past = past_reports(run.store, report) if status in ("published", "refused") else []
    report = _with_places(run, compare_with_before(past, report), is_stored=is_stored)
    try:
        if is_stored:
            path = run.layout.report
            run.store.put(path(run.record.run_id), to_json(report))
            page = to_html(report, past, _sheets(run, status))
            run.store.put(path(run.record.run_id, REPORT_PAGE), page.encode())
    finally:
        run.exports.end(run, report)
    return report


def _sheets(run: RunContext, status: RunStatus) -> str:
    """Return the sheet of published rows with their inputs, read as the run read them."""
    manifest, number = run.record.current, run.job.report.samples
    if status != "published" or manifest is None:
        return ""
    from pipeline.published.originals import OriginalFinder  # imports the readers of sources
    from pipeline.published.sheets import try_sheet

    options = run.job.source.storage_options
    return try_sheet(OriginalFinder(run.store, run.layout, manifest, options), number)


def _with_places(run: RunContext, report: Report, *, is_stored: bool) -> Report:
    """Return the report with the paths of the quarantine and of itself, if they exist."""
    has_quarantine = report.output.uri and report.rows.quarantined
    path = run.layout.report(run.record.run_id, REPORT_PAGE)
    output = report.output.but(
        quarantine=run.store.url(run.layout.quarantine) if has_quarantine else None,
        report=run.store.url(path) if is_stored else None,
    )
    return report.but(output=output)


def save_trouble(run: RunContext, error: BaseException) -> None:
    """Store the report of a failed run; if that fails, too, log it: the first error counts."""
    if isinstance(error, PartitionBusy):
        return
    if isinstance(error, GoldenRefused):
        run.record.judged([error.result()])
    if isinstance(error, SystematicFailure):
        run.record.failed_alike(error.failed)
    ours = as_ours(error)
    try:
        report = save_report(run, _status_of(ours), ours)
    except Exception as further:  # noqa: BLE001  # the cause of the failure may also prevent the report
        log.warning("no report: %s", clean_message(f"{type(further).__name__}: {further}"))
    else:
        error.report = report.output.report  # type: ignore[attr-defined]


def _status_of(error: PipelineError) -> RunStatus:
    if isinstance(error, GateRefused):
        return "refused"
    return "stopped" if isinstance(error, Stopped) else "failed"
