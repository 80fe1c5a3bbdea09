"""The report of a run as one document (report.json); render.py shows it to people.

A run states what it knows when it ends, however it ends; its counters decide the rest. Unknown
values are null, never a guess. Callers write the bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Literal

from pydantic import Field

from pipeline.process.screen import as_lines
from pipeline.report.sections import Section, ratio
from pipeline.report.sections.bottleneck import (
    BottleneckSection,
    Forecast,
    find_bottleneck,
    make_forecasts,
)
from pipeline.report.sections.carried import Carried, Retry
from pipeline.report.sections.failures import FailedRows, SkippedFiles
from pipeline.report.sections.limits import GroupLimit, Load, find_limits
from pipeline.report.sections.model import Hardware, ModelSection
from pipeline.report.sections.outcome import Gate, Output, Rows, Slices
from pipeline.report.sections.over_time import OverTime
from pipeline.report.sections.stages import (
    BytesPerRow,
    Isolation,
    SlowerStage,
    Stage,
    StartupPart,
    bytes_per_row,
    isolation_of,
    stages_of,
    startup_parts,
)
from pipeline.report.sections.texts import Texts, Written, texts_of, written_of
from pipeline.report.sections.versions import LabelCount

REPORT_VERSION: Final = 1

RunStatus = Literal["published", "refused", "stopped", "failed", "nothing_to_do"]


class Report(Section):
    """One run of the pipeline over one partition."""

    version: Literal[1] = REPORT_VERSION
    """Version of this document; raised when a field changes its meaning or goes."""
    run_id: str
    partition: str
    fingerprint: str | None = None
    """Hash of all that decides the predictions."""
    status: RunStatus
    exit_code: int
    error: str | None = None
    started_at: str | None = None
    """ISO 8601, UTC."""
    finished_at: str | None = None
    """ISO 8601, UTC."""
    wall_s: float | None = None
    """Seconds of the whole run."""
    streaming_wall_s: float | None = None
    """Seconds from the first read to the last write."""
    rows_per_s: float | None = None
    """Rows computed over the streaming wall."""
    run_rows_per_s: float | None = None
    """Rows computed over the wall time of the whole run, start-up and publishing included."""
    price_per_node_hour: float | None = None
    cost_per_million_rows: float | None = None
    """In the currency of the price; rows computed in this run."""
    rows: Rows = Rows()
    slices: Slices = Slices()
    reasons: dict[str, int] = Field(default_factory=dict)
    """Quarantined rows by reason."""
    top_failures: list[FailedRows] = Field(default_factory=list)
    """The five causes of the most failed rows. If all rows of the first batches failed alike, which
    ends a run, only that cause; `rows` does not count its rows."""
    unreadable_shards: int = 0
    """Shards that could not be opened: their row count is unknown."""
    skipped: SkippedFiles = SkippedFiles()
    """Files below the source that are not input."""
    over_time: OverTime | None = None
    """Null if this run computed no slice."""
    startup: list[StartupPart] = Field(default_factory=list)
    stages: list[Stage] = Field(default_factory=list)
    limits: list[GroupLimit] = Field(default_factory=list)
    bottleneck: BottleneckSection = BottleneckSection()
    predictions: list[Forecast] = Field(default_factory=list)
    """The effect of each usual change; empty if no stage was measured."""
    bytes_per_row: BytesPerRow = BytesPerRow()
    isolation: Isolation = Isolation()
    decode_in: Literal["actors", "tasks"] | None = None
    """Where images were decoded, or texts tokenised; null if none were, or if unknown."""
    write_in: Literal["actors", "tasks"] | None = None
    """Where slices were written; null if none were, or if unknown."""
    texts: Texts | None = None
    """Null if rows have no tokens."""
    written: Written | None = None
    """Null if the model writes no texts."""
    slower_than_before: list[SlowerStage] | None = None
    """Stages that lost more than a fifth of their speed since the last comparable run; null if
    there was none."""
    hardware: Hardware = Hardware()
    model: ModelSection = ModelSection()
    output: Output = Output()
    gates: list[Gate] = Field(default_factory=list)
    top_labels: list[LabelCount] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)
    carried: Carried | None = None
    """Predictions taken over from earlier versions; null if the run ended before it looked."""
    retry: Retry | None = None
    """Only for `pipeline retry`; `rows` then counts the whole merged partition."""
    in_flight: list[str] = Field(default_factory=list)
    """For a run that ended because it made no progress: the operators and actors of Ray that were
    at work, one line each; `in_flight.txt` beside the report has more."""

    def __str__(self) -> str:
        """Return the summary that a run prints, without styles."""
        from pipeline.report.render import render_table

        return as_lines(render_table(self)).rstrip("\n")

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the same for a notebook, escaped."""
        from pipeline.report.showing.printed import text_html

        return text_html(str(self))


def report_schema() -> dict[str, Any]:
    """Return the JSON schema of report.json."""
    return Report.model_json_schema(mode="serialization")


def build_report(stated: Report, measured: Load) -> Report:
    """Return the report that a run states, with the sections that its counters decide.

    Args:
        stated: The fields that only the run knows.
        measured: Figures, slots and start-up; rows and hardware come from `stated`.
    """
    rows, model, hardware = stated.rows, stated.model, stated.hardware
    cost = _cost(stated)
    load = replace(
        measured,
        streaming_wall_s=stated.streaming_wall_s,
        wall_s=stated.wall_s,
        cpus=hardware.cpus,
        gpus=hardware.gpus,
        is_on_gpu=model.device is not None and not model.device.startswith("cpu"),
    )
    return stated.but(
        rows_per_s=ratio(rows.computed, load.streaming_wall_s),
        run_rows_per_s=ratio(rows.computed, load.wall_s),
        cost_per_million_rows=None if cost is None else ratio(1e6 * cost, rows.computed),
        startup=startup_parts(load),
        stages=stages_of(load),
        limits=find_limits(load),
        bottleneck=find_bottleneck(load),
        predictions=[forecast for forecast, _ in make_forecasts(load)],
        bytes_per_row=bytes_per_row(load),
        isolation=isolation_of(load),
        decode_in=_done_in(load, load.prepared, "decoder"),
        write_in=_done_in(load, ("write",), "writer"),
        texts=texts_of(load),
        written=written_of(load, cost),
    )


def _done_in(load: Load, stages: Sequence[str], group: str) -> Literal["actors", "tasks"] | None:
    if not any(stage in load.figures.stages for stage in stages):
        return None
    return "actors" if group in load.in_actors else "tasks"


def _cost(report: Report) -> float | None:
    nodes, price = report.hardware.nodes, report.price_per_node_hour
    if nodes is None or report.wall_s is None or price is None:
        return None
    return float(nodes * report.wall_s / 3600 * price)


def to_json(report: Report) -> bytes:
    """Serialise a report, the same bytes for the same report."""
    document = report.model_dump(mode="json")
    return (json.dumps(document, allow_nan=False, sort_keys=True, indent=2) + "\n").encode("ascii")
