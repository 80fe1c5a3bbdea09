"""What made-up runs know when they end, their loads and reports, and the metrics of these."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pipeline.core.figures import STAGES, SliceFigures, StageCounters
from pipeline.report.document import Report, build_report
from pipeline.report.sections.limits import Load

ROWS, WALL_S, STREAMING_S = 9003, 80.0, 60.0


def counted(busy_s: float, quarantined: int = 0) -> dict[str, float]:
    rows_out = ROWS - quarantined
    return StageCounters(ROWS, rows_out, quarantined, 45_000, 150_528, busy_s).to_dict()


Facts = Mapping[str, Any]
"""Fields of a report that a run states, those of its `Load`, and its counters."""
_MEASURED = {field.name for field in fields(Load)} - set(Report.model_fields) | {"startup"}

FULL: dict[str, Any] = dict(
    run_id="r-1",
    partition="date=2026-11-24",
    status="published",
    exit_code=0,
    fingerprint="9f" * 32,
    started_at="2026-11-24T02:00:00Z",
    finished_at="2026-11-24T02:01:20Z",
    wall_s=WALL_S,
    streaming_wall_s=STREAMING_S,
    startup={"ray_start": 7.0, "imports": 3.0, "model_load": 2.0},
    rows={"total": 12003, "predicted": 11990, "quarantined": 13, "computed": ROWS, "resumed": 3000},
    slices={"total": 47, "computed": 35, "resumed": 12},
    reasons={"truncated": 9, "empty": 4},
    unreadable_shards=1,
    skipped={
        "files": 17,
        "judged": 15,
        "reasons": [
            {"reason": "extension", "files": 15, "first": ["IMG_1.cr2", "IMG_2.cr2"]},
            {"reason": "marker", "files": 2, "first": ["_SUCCESS"]},
        ],
        "extensions": [{"extension": ".cr2", "files": 15}],
    },
    counters={
        "list": counted(0.5),
        "read": counted(2.0),
        "decode": counted(12.0, quarantined=13),
        "transform": counted(4.0),
        "transfer": counted(3.0),
        "predict": counted(117.0),
        "write": counted(1.0),
        "publish": counted(1.0),
        "model_load": StageCounters(busy_s=4.0).to_dict(),
    },
    slots={stage: 2.0 if stage in ("transfer", "predict") else 1.0 for stage in STAGES},
    hardware={"nodes": 1, "cpus": 4.0, "gpus": 0.0},
    model={
        "name": "efficientnet-lite0",
        "weights_sha256": "ab" * 32,
        "precision": "bf16",
        "device": "cpu",
        "batch_size": 64,
    },
    output={"uri": "s3://bucket/out", "parts": 2, "bytes": 1_234_567},
    gates=[{"name": "max_error_pct", "status": "pass", "value": 0.1, "limit": 5.0}],
    price_per_node_hour=1.2,
    top_labels=[{"label": "tabby cat", "count": 812}, {"label": "coffee mug", "count": 122}],
    versions={"ray": "2.60.0"},
)
BARE = {
    status: dict(run_id="r", partition="all", status=status, exit_code=code, error=error)
    for status, code, error in [
        ("published", 0, None),
        ("nothing_to_do", 0, None),
        ("refused", 3, "gate max_error_pct: 12% of the rows failed, 5% are allowed"),
        ("stopped", 6, "asked to stop"),
        ("failed", 7, "s3://bucket: cannot be listed"),
    ]
}
ZEROS = FULL | {
    "wall_s": 0.0,
    "streaming_wall_s": 0.0,
    "rows": dict.fromkeys(FULL["rows"], 0),
    "counters": {stage: StageCounters().to_dict() for stage in STAGES},
}
NOT_NUMBERS = FULL | {
    "hardware": {"nodes": 1, "cpus": math.inf},
    "gates": [{"name": "drift", "status": "warn", "value": math.nan, "limit": math.inf}],
    "price_per_node_hour": math.nan,
}
CASES = {"full": FULL, "zeros": ZEROS, "not_numbers": NOT_NUMBERS, **BARE}


def report_of(facts: Facts = FULL, **changes: Any) -> Report:
    """The report of a run."""
    known = {**facts, **changes}
    figures = SliceFigures.from_json(known.pop("counters", {}))
    measured = {name: known.pop(name) for name in _MEASURED & set(known)}
    return build_report(Report(**known), Load(figures, **measured))


def document_of(facts: Facts = FULL, **changes: Any) -> dict[str, Any]:
    """The same, as report.json has it."""
    return report_of(facts, **changes).model_dump(mode="json")


def everywhere(text: str) -> Facts:
    """A run with this text in every field that holds text of the data or of the machine."""
    return FULL | dict(
        run_id=text,
        partition=text,
        fingerprint=text,
        error=text,
        started_at=text,
        reasons={text: 3},
        startup={text: 1.0},
        skipped={
            "files": 1,
            "judged": 1,
            "reasons": [{"reason": text, "files": 1, "first": [text]}],
            "extensions": [{"extension": text, "files": 1}],
        },
        hardware=FULL["hardware"] | {"gpu_name": text},
        model=FULL["model"]
        | {"name": text, "precision": text, "scores": text, "devices": {text: 3}, "advice": [text]},
        output={"uri": text},
        gates=[{"name": text, "status": "fail", "value": text, "limit": text, "message": text}],
        top_failures=[
            {"reason": text, "stage": text, "message": text, "num_rows": 1, "row_id": text}
        ],
        top_labels=[{"label": text, "count": 1}],
        versions={text: text},
    )


def counters_of(rows: int, busy_s: float) -> StageCounters:
    return StageCounters(rows, rows, 0, rows * 100, rows * 100, busy_s)


def figures_of(**stages: StageCounters) -> SliceFigures:
    return SliceFigures(stages)


def load_of(busy: dict[str, float], slots: dict[str, float], **more) -> Load:
    """A stream of 100 s and 10,000 rows; `busy` has the seconds of a tenth of it."""
    return Load(
        SliceFigures({stage: counters_of(10_000, 10 * busy_s) for stage, busy_s in busy.items()}),
        slots={
            stage: slots[group]
            for stage, group in (
                ("read", "reader"),
                ("decode", "decoder"),
                ("transform", "decoder"),
                ("transfer", "actor"),
                ("predict", "actor"),
                ("write", "writer"),
            )
        },
        **{"streaming_wall_s": 100.0, "wall_s": 120.0, **more},
    )


def samples(text: str) -> dict[str, float]:
    """What Prometheus reads: each line is a comment, or a series and its value."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {series: float(value) for series, _, value in (line.rpartition(" ") for line in lines)}


def expected(report: Mapping[str, Any], job: str) -> dict[str, float]:
    """The series that follow from a report.json alone."""
    label = f'job="{job}"'
    series: dict[str, float | None] = {
        f"pipeline_run_duration_seconds{{{label}}}": report["wall_s"],
        f'pipeline_run_status{{{label},status="{report["status"]}"}}': 1.0,
        f'pipeline_run_status{{{label},status="running"}}': 0.0,
    }
    for state in ("predicted", "quarantined", "left"):
        series[f'pipeline_partition_rows{{{label},state="{state}"}}'] = report["rows"][state]
    for state in ("computed", "resumed", "left"):
        series[f'pipeline_slices{{{label},state="{state}"}}'] = report["slices"][state]
    for stage in report["stages"]:
        of = f'{{{label},stage="{stage["stage"]}"}}'
        series[f"pipeline_rows_total{of}"] = stage["rows_out"]
        series[f"pipeline_bytes_total{of}"] = stage["bytes_out"]
        series[f"pipeline_busy_seconds_total{of}"] = stage["busy_s"]
        if stage["utilisation_pct"] is not None:
            series[f"pipeline_stage_utilization_ratio{of}"] = stage["utilisation_pct"] / 100
    for reason, num_rows in report["reasons"].items():
        series[f'pipeline_quarantined_rows_total{{{label},reason="{reason}"}}'] = num_rows
    for gate in report["gates"]:
        name, result = gate["name"], gate["status"]
        series[f'pipeline_gate_result{{gate="{name}",{label},result="{result}"}}'] = 1.0
    return {name: value for name, value in series.items() if value is not None}
