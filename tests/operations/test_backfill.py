"""A backfill goes through all dates, whatever each of them comes to; here none comes to Ray."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest
from support.runs.cli import write_job

import pipeline
from pipeline.commands.demo.photos import build_images
from pipeline.commit.layout import Layout
from pipeline.commit.lease import hold_lease
from pipeline.core.errors import JobError, PipelineError
from pipeline.operations.backfill import WORST_FIRST, Backfill, DateRun
from pipeline.storage.store import Store

DAYS = ["2026-11-22", "2026-11-23", "2026-11-24"]
ALLOWED = ["models"]


def job_over(folder: Path, partition: str = "date=${date}") -> str:
    source = {"uri": str(folder / "in" / "${date}"), "format": "images"}
    sink = {"partition": partition}
    return write_job(folder / "job.yaml", source, str(folder / "out"), sink=sink)


def of_codes(*codes: int | None) -> Backfill:
    return Backfill(tuple(DateRun(day, "-", code) for day, code in zip(DAYS, codes, strict=False)))


def test_the_exit_code_is_the_worst_of_all():
    assert set(WORST_FIRST) == {0, 1, *(kind.exit_code for kind in PipelineError.__subclasses__())}
    for place, worse in enumerate(WORST_FIRST):
        for other in WORST_FIRST[place:]:
            assert {of_codes(*codes).exit_code for codes in permutations([worse, other])} == {worse}
    assert of_codes(None, None).exit_code == of_codes().exit_code == 0


def test_a_date_that_is_busy_or_without_input_keeps_none_of_the_others(tmp_path: Path):
    job = job_over(tmp_path)
    build_images(tmp_path / "in" / DAYS[1], 4, seed=3, num_bad=0)
    with hold_lease(Store(str(tmp_path / "out")), Layout(f"date={DAYS[1]}"), "another", 1e6):
        done = pipeline.backfill(job, from_=DAYS[0], to=DAYS[2], allow_import=ALLOWED)
        seen = pipeline.backfill(
            job, from_=DAYS[0], to=DAYS[2], only="failed", dry_run=True, allow_import=ALLOWED
        )
    assert [(each.date, each.outcome, each.exit_code) for each in done.dates] == [
        (DAYS[0], "no_input", 8),
        (DAYS[1], "busy", 4),
        (DAYS[2], "no_input", 8),
    ]
    assert done.exit_code == 4
    assert "another" in str(done.dates[1].error)
    assert [each.outcome for each in seen.dates] == ["left_out"] * 3
    assert done.to_dict()["dates"][1]["exit_code"] == 4
    assert [row["outcome"] for row in done.shown()["dates"]] == ["no input", "busy", "no input"]


def test_what_would_make_no_sense_is_refused_before_anything_is_done(tmp_path: Path):
    job = job_over(tmp_path)
    loaded = pipeline.load_job(job, date=DAYS[0])
    with pytest.raises(JobError, match="the job is loaded: give its file or mapping"):
        pipeline.backfill(loaded, from_=DAYS[0])
    with pytest.raises(JobError, match="only late: write one of missing, stale, failed, refused"):
        pipeline.backfill(job, from_=DAYS[0], only="late")
    with pytest.raises(JobError, match="give at least one date"):
        pipeline.backfill(job, from_=DAYS[1], to=DAYS[0])
    with pytest.raises(JobError, match=r"the same for all dates: write \$\{date\} in it"):
        pipeline.backfill(job_over(tmp_path, "number=1"), from_=DAYS[0], to=DAYS[1])
    assert not (tmp_path / "out").exists()
