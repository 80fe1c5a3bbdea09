"""What a run tells others while it works, and however it has ended: its metrics and lineage."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.commit.layout import Layout
from pipeline.job.metrics import Metrics
from pipeline.report.document import Report
from pipeline.report.metrics.exporting import Exporter, Exporting, Planned
from pipeline.report.metrics.figures import RunFigures
from pipeline.storage.uris import normalise

if TYPE_CHECKING:
    from pipeline.runs.context import RunContext

_OPENLINEAGE = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG", "OPENLINEAGE__TRANSPORT__TYPE")
_OTLP_ENDPOINTS = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class Exports:
    """The exporters that a job asks for; a failure in one neither fails nor delays the run."""

    def __init__(self) -> None:
        self._begun: tuple[RunFigures, Exporting] | None = None
        self._has_ended = False
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def during(self, run: RunContext) -> Iterator[None]:
        """Export in the body how the run is, until `end`."""
        self._begun = _begin(run, is_live=True)
        try:
            yield
        finally:
            self._end(None)

    def end(self, run: RunContext, report: Report) -> None:
        """Export how the run has ended; its process may be gone, and this be that one's parent."""
        if self._begun is None and not self._has_ended:
            self._begun = _begin(run, is_live=False)
        self._end(report)

    def _end(self, report: Report | None) -> None:
        with self._lock:  # who watches over a run may end it, too
            begun, self._begun, self._has_ended = self._begun, None, True
        if begun is not None:
            figures, exporting = begun
            if report is not None:
                figures.end(report)
            exporting.end(has_result=report is not None)


def _begin(run: RunContext, *, is_live: bool) -> tuple[RunFigures, Exporting] | None:
    figures = RunFigures(run.record, run.options.job_name or folder_name(run.job.sink.uri))
    planned = [
        *_metrics(run.job.metrics, figures, is_live=is_live),
        *_otlp(figures),
        *_lineage(run, figures),
    ]
    return (figures, Exporting(planned)) if planned else None


def _metrics(wanted: Metrics, figures: RunFigures, *, is_live: bool) -> Iterator[Planned]:
    """Yield what the job asks for; libraries are imported where each is made."""

    def port() -> Exporter:
        from pipeline.report.metrics.prometheus import Port

        return Port(wanted.host, wanted.port or 0, figures.families)

    def textfile() -> Exporter:
        from pipeline.report.metrics.prometheus import Textfile

        return Textfile(wanted.textfile or "", figures.job, figures.families)

    def push() -> Exporter:
        from pipeline.report.metrics.prometheus import PushGateway

        return PushGateway(wanted.push_url or "", figures.job, figures.families)

    if wanted.port is not None and is_live:
        yield Planned(f"metrics at {wanted.host}:{wanted.port}", port)
    if wanted.textfile is not None:
        yield Planned(f"metrics to {wanted.textfile}", textfile)
    if wanted.push_url is not None:
        yield Planned(f"metrics to {wanted.push_url}", push)


def _otlp(figures: RunFigures) -> Iterator[Planned]:
    """Yield what OpenTelemetry's own variables ask for."""

    def make() -> Exporter:
        with _needing("otlp"):
            from pipeline.report.metrics.otlp import Otlp
        return Otlp(figures.job, figures.families)

    named = [os.environ.get(name) for name in _OTLP_ENDPOINTS]
    is_off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if any(named) and not is_off and os.environ.get("OTEL_METRICS_EXPORTER") != "none":
        yield Planned("metrics by OTLP", make)


def _lineage(run: RunContext, figures: RunFigures) -> Iterator[Planned]:
    """Yield what OpenLineage's own variables ask for."""

    def make() -> Exporter:
        with _needing("openlineage"):
            from pipeline.report.lineage import Lineage
        source, predictions = normalise(run.job.source.uri), run.store.url(Layout(None).predictions)
        return Lineage(figures, source, predictions)

    is_off = os.environ.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true"
    if any(os.environ.get(name) for name in _OPENLINEAGE) and not is_off:
        yield Planned("OpenLineage", make, every_s=1.0, ends_within_s=5.0)


@contextlib.contextmanager
def _needing(extra: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        advice = f"pip install 'batch-inference-pipeline[{extra}]'"
        raise ImportError(f"{error}; it needs the extra: {advice}") from None


def folder_name(uri: str) -> str:
    """Name a job whose file has no name, by the folder of its output."""
    return uri.rstrip("/").rpartition("/")[2]
