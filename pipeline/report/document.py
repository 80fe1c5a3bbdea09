"""The report of a run as one document (report.json); render.py shows it to people.

In: `RunFacts`, whatever the run knows when it ends, however it ends. Out: a JSON document of a
declared schema. What is not known is null, never a guess. Callers write the bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal

from pydantic import Field

from pipeline.core.figures.counters import PREPARED, Counters
from pipeline.report.sections import (
    FailedRows,
    Gate,
    Hardware,
    LabelCount,
    ModelSection,
    Output,
    Retry,
    Rows,
    Section,
    SkippedFiles,
    Slices,
)
from pipeline.report.speed.bottleneck import find_bottleneck
from pipeline.report.speed.forecast import make_forecasts
from pipeline.report.speed.limits import Load, Slots, find_limits
from pipeline.report.speed.performance import (
    BottleneckSection,
    BytesPerRow,
    ForecastSection,
    GpuDecode,
    GroupLimit,
    Isolation,
    SlowerStage,
    Stage,
    StartupPart,
    bytes_per_row,
    forecasts_of,
    gpu_decode_of,
    isolation_of,
    ratio,
    stages_of,
    startup_parts,
)
from pipeline.report.texts import Texts, texts_of

REPORT_VERSION: Final = 1

RunStatus = Literal["published", "refused", "stopped", "failed", "nothing_to_do"]


@dataclass(frozen=True)
class RunFacts:
    """What a run hands over; the defaults say "not known", so that a failed run has a report too.

    The dictionaries take the fields of the section of the same name in `Report`; an unknown key
    is an error, a missing one is null.
    """

    run_id: str
    partition: str
    status: RunStatus
    exit_code: int
    fingerprint: str | None = None
    error: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    wall_s: float | None = None
    streaming_wall_s: float | None = None
    startup: dict[str, float] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    slices: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    top_failures: list[dict[str, Any]] = field(default_factory=list)
    unreadable_shards: int = 0
    skipped: dict[str, Any] = field(default_factory=dict)
    counters: Counters = field(default_factory=dict)
    slots: Slots = field(default_factory=dict)
    prepared: tuple[str, ...] = PREPARED
    """The stages of the run's input, in order."""
    on_cluster: bool = False
    """It ran on a cluster that was up, not on a Ray of its own."""
    in_actors: frozenset[str] = frozenset()
    """Groups whose work only the actors do: `decoder`, `writer`."""
    batch_rates: dict[int, float] = field(default_factory=dict)
    """Batch size, for texts in tokens -> rows/s of one actor's model alone, if it was measured at
    several."""
    hardware: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    output: dict[str, Any] = field(default_factory=dict)
    gates: list[dict[str, Any]] = field(default_factory=list)
    price_per_node_hour: float | None = None
    top_labels: list[tuple[str, int]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    in_flight: list[str] = field(default_factory=list)
    retry: dict[str, int] | None = None


class Report(Section):
    """One run of the pipeline over one partition."""

    version: Literal[1]
    """Version of this document; raised when a field changes its meaning or goes."""
    run_id: str
    partition: str
    fingerprint: str | None
    """Hash of all that decides the predictions."""
    status: RunStatus
    exit_code: int
    error: str | None
    started_at: str | None
    """ISO 8601, UTC."""
    finished_at: str | None
    """ISO 8601, UTC."""
    wall_s: float | None
    """Of the whole run."""
    streaming_wall_s: float | None
    """From the first read to the last write."""
    rows_per_s: float | None
    """Rows computed over the streaming wall."""
    run_rows_per_s: float | None
    """Rows computed over the wall time of the whole run, start-up and publishing included."""
    price_per_node_hour: float | None
    cost_per_million_rows: float | None
    """In the currency of the price; rows computed in this run."""
    rows: Rows
    slices: Slices
    reasons: dict[str, int]
    """Quarantined rows by reason."""
    top_failures: list[FailedRows] = Field(default_factory=list)
    """The five causes of the most failed rows. Where all rows of the first batches failed alike,
    which ends a run, that cause alone; its rows are not among those that `rows` counts."""
    unreadable_shards: int
    """Shards that could not be opened: their row count is unknown."""
    skipped: SkippedFiles = SkippedFiles()
    """Files below the source that are no input."""
    startup: list[StartupPart]
    stages: list[Stage]
    limits: list[GroupLimit]
    bottleneck: BottleneckSection
    predictions: list[ForecastSection] = Field(default_factory=list)
    """What each of the usual changes would bring; empty if no stage was measured."""
    bytes_per_row: BytesPerRow = BytesPerRow()
    isolation: Isolation = Isolation()
    decode_in: Literal["actors", "tasks"] | None = None
    """Where images were decoded, or texts tokenised; null if none were, or if that is unknown."""
    write_in: Literal["actors", "tasks"] | None = None
    """Where slices were written; null if none were, or if that is unknown."""
    gpu_decode: GpuDecode | None = None
    """Null if no GPU was asked to decode."""
    texts: Texts | None = None
    """Null if rows have no tokens."""
    slower_than_before: list[SlowerStage] | None = None
    """Stages that lost more than a fifth of their speed since the last comparable run; null: not
    compared."""
    hardware: Hardware
    model: ModelSection
    output: Output
    gates: list[Gate]
    top_labels: list[LabelCount]
    versions: dict[str, str]
    retry: Retry | None = None
    """Only of `pipeline retry`; `rows` then counts the whole partition, as it is merged."""
    in_flight: list[str] = Field(default_factory=list)
    """What a run worked on that was ended because it got no further: operators and actors of Ray,
    one line each; `in_flight.txt` beside the report has more."""


def report_schema() -> dict[str, Any]:
    """Return the JSON schema of report.json."""
    return Report.model_json_schema(mode="serialization")


def build_report(facts: RunFacts) -> dict[str, Any]:
    """Turn the facts of a run into the report.json document."""
    known = {f.name: _finite(getattr(facts, f.name)) for f in fields(facts)}
    hardware, model = Hardware(**known["hardware"]), ModelSection(**known["model"])
    rows = Rows(**known["rows"])
    load = Load(
        counters=facts.counters,
        slots={stage: slots for stage, slots in known["slots"].items() if slots is not None},
        streaming_wall_s=known["streaming_wall_s"],
        wall_s=known["wall_s"],
        startup={part: s for part, s in known["startup"].items() if s is not None},
        cpus=hardware.cpus,
        gpus=hardware.gpus,
        is_on_gpu=model.device is not None and not model.device.startswith("cpu"),
        on_cluster=facts.on_cluster,
        slices=facts.slices.get("computed"),
        in_actors=facts.in_actors,
        prepared=facts.prepared,
        batch_size=model.batch_size,
        batch_tokens=model.batch_tokens,
        batch_rates={size: rate for size, rate in known["batch_rates"].items() if rate},
    )
    same = set(Report.model_fields) & set(known)
    report = Report(
        **{name: known[name] for name in same - _BUILT},
        version=REPORT_VERSION,
        rows_per_s=ratio(rows.computed, load.streaming_wall_s),
        run_rows_per_s=ratio(rows.computed, load.wall_s),
        cost_per_million_rows=_cost(hardware.nodes, load.wall_s, facts, rows.computed),
        rows=rows,
        slices=Slices(**known["slices"]),
        skipped=SkippedFiles(**known["skipped"]),
        startup=startup_parts(load),
        stages=stages_of(load),
        limits=[GroupLimit(**vars(limit)) for limit in find_limits(load)],
        bottleneck=BottleneckSection(**vars(find_bottleneck(load))),
        predictions=forecasts_of(make_forecasts(load)),
        bytes_per_row=bytes_per_row(load),
        isolation=isolation_of(load),
        decode_in=_done_in(load, load.prepared, "decoder"),
        write_in=_done_in(load, ("write",), "writer"),
        gpu_decode=gpu_decode_of(load),
        texts=texts_of(load),
        hardware=hardware,
        model=model,
        output=Output(**known["output"]),
        gates=[Gate(**gate) for gate in known["gates"]],
        top_labels=[LabelCount(label=label, count=n) for label, n in facts.top_labels],
    )
    return report.model_dump(mode="json")


_BUILT = frozenset(
    ["rows", "slices", "skipped", "startup", "hardware", "model", "output", "gates", "top_labels"]
)


def _done_in(load: Load, stages: Sequence[str], group: str) -> Literal["actors", "tasks"] | None:
    if not any(stage in load.counters for stage in stages):
        return None
    return "actors" if group in load.in_actors else "tasks"


def _finite(value: Any) -> Any:
    # JSON has no NaN and no Infinity; what cannot be said is not known.
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value


def _cost(
    nodes: int | None, wall_s: float | None, facts: RunFacts, rows: int | None
) -> float | None:
    price = _finite(facts.price_per_node_hour)
    if nodes is None or wall_s is None or price is None or not rows:
        return None
    return float(nodes * wall_s / 3600 * price / rows * 1e6)


def to_json(report: dict[str, Any]) -> bytes:
    """Serialise a report, the same bytes for the same report."""
    return (json.dumps(report, allow_nan=False, sort_keys=True, indent=2) + "\n").encode("ascii")
