"""A run of a job in this process, and what follows from its input: no time, no name of a run."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pytest

from pipeline.commit.layout import parse_staged_name
from pipeline.commit.manifest import current_manifest
from pipeline.commit.staging import StagedSlice
from pipeline.core.figures.counters import STARTUP_PARTS
from pipeline.dataflow import run_job
from pipeline.job.reading.loader import read_job
from pipeline.report.document import Report
from pipeline.report.recorder import RunRecorder
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.progress import Silent
from support.runs.published_rows import read_part

OF_TIMES = {
    *("bottleneck", "finished_at", "limits", "over_time", "predictions", "slower_than_before"),
    *("started_at", "startup", "utilisation_pct"),
}
"""What depends on times, beside fields in seconds and rates."""
OF_RUNS = {"created_at", "parts", "quarantine_parts", "output", "run_id", "token"}


@dataclass(frozen=True)
class Executed:
    """What a run has computed, published and reported."""

    report: Report
    slices: dict[Any, dict[str, Any]]
    """What each footer says, by the slice."""
    predictions: pa.Table
    quarantine: list[dict[str, Any]]
    manifest: dict[str, Any]

    @property
    def figures(self) -> dict[str, Any]:
        """The report without times."""
        report: dict[str, Any] = _without(self.report.model_dump(mode="json"), OF_TIMES | OF_RUNS)
        for stage in report["stages"]:
            if stage["stage"] in ("write", "publish"):
                del stage["bytes_in"]  # of a file whose footer has times
            if stage["stage"] == "publish":
                del stage["bytes_out"]  # the quarantine has names of runs, compressed
        report["bytes_per_row"].pop("published")
        return report


def execute(job_path: str, date: str, monkeypatch: pytest.MonkeyPatch) -> Executed:
    job = read_job(job_path, date=dt.date.fromisoformat(date))
    options = RunOptions(allow_import=("models",))
    slices = {}
    count = RunRecorder.computed

    def note(record: RunRecorder, staged: StagedSlice) -> None:
        slices[parse_staged_name(staged.name)] = _facts(staged)
        count(record, staged)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "computed", note)
        report = run_job(job, options, Silent())
    run = RunContext.of(job, options)
    manifest = current_manifest(run.store, run.layout)
    assert manifest is not None
    bad = [row for p in manifest.quarantine_parts for row in read_part(run.store, p).to_pylist()]
    return Executed(
        report,
        slices,
        pa.concat_tables([read_part(run.store, part) for part in manifest.parts]),
        [{name: value for name, value in row.items() if name != "run_id"} for row in bad],
        _without(asdict(manifest), OF_RUNS | {"keys"}),
    )


def _facts(staged: StagedSlice) -> dict[str, Any]:
    facts = _without(asdict(staged), OF_TIMES | {"run_id", "name"})
    for part in STARTUP_PARTS:  # of the first slice of an actor
        facts["counters"].pop(part, None)
    del facts["counters"]["write"]["bytes_in"]  # a process that gets an array may have it shorter
    return facts


def _without(value: Any, names: set[str]) -> Any:
    if isinstance(value, dict):
        return {
            key: _without(entry, names)
            for key, entry in value.items()
            if not (key in names or key.endswith("_s"))
        }
    return [_without(entry, names) for entry in value] if isinstance(value, list) else value
