"""`pipeline backfill`: the order of dates, and its end, without Ray."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import typer
from support.inputs.photos import build_images
from support.runs.cli import write_job

import pipeline
from pipeline.commands.operation import show
from pipeline.commit.layout import Layout
from pipeline.commit.lease import hold_lease
from pipeline.core.errors import JobError, PipelineError, Stopped
from pipeline.job.reading.dates import ONLY, date_text
from pipeline.operations.backfill import WORST_FIRST, Backfill, DateRun, do_all
from pipeline.process.run_scope import new_scope
from pipeline.runs.progress import Silent
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
    assert set(WORST_FIRST) == {
        0,
        1,
        *(error_type.exit_code for error_type in PipelineError.__subclasses__()),
    }
    for place, worse in enumerate(WORST_FIRST):
        for other in WORST_FIRST[place:]:
            assert {of_codes(*codes).exit_code for codes in permutations([worse, other])} == {worse}
    assert of_codes(None, None).exit_code == of_codes().exit_code == 0
    with new_scope(), pytest.raises(typer.Exit) as caught:
        show(of_codes(0, 3), as_json=False, quiet=True)
    assert caught.value.exit_code == 3, "of the command"


class StopsAtOnce(Silent):
    def phase(self, what: str, *, is_logged: bool = True) -> None:
        raise Stopped("SIGTERM")


def test_no_date_begins_after_a_stop(tmp_path: Path):
    dates = {"from_": DAYS[0], "to": DAYS[2], "allow_import": ALLOWED}
    done = pipeline.backfill(job_over(tmp_path), **dates, progress=StopsAtOnce())
    assert [date_run.outcome for date_run in done.dates] == ["stopped", "not_begun", "not_begun"]
    assert done.exit_code == 6


class EndsTheOther(Silent):
    """Ends the run that is waited for, and takes the input away."""

    def __init__(self, other: ExitStack, folder: Path) -> None:
        self.other, self.folder = other, folder
        self.lines: list[str] = []

    def phase(self, what: str, *, is_logged: bool = True) -> None:
        self.lines.append(what)
        if what.startswith("waiting for"):
            shutil.rmtree(self.folder)
            self.other.close()


def test_waiting_for_a_busy_date_ends_at_the_deadline(tmp_path: Path):
    job = job_over(tmp_path)
    build_images(tmp_path / "in" / DAYS[1], 4, seed=3, num_bad=0)
    store, layout = Store(str(tmp_path / "out")), Layout(f"date={DAYS[1]}")
    with hold_lease(store, layout, "another", 1e6):
        done = pipeline.backfill(
            job, from_=DAYS[1], to=DAYS[1], overrides={"run.deadline": "1s"}, allow_import=ALLOWED
        )
    assert [date_run.outcome for date_run in done.dates] == ["busy"]
    assert done.exit_code == 4


@pytest.mark.parametrize("only", [None, "missing"])
def test_a_busy_date_is_retried_when_the_other_run_has_ended(only: str | None, tmp_path: Path):
    job, folder = job_over(tmp_path), tmp_path / "in" / DAYS[1]
    build_images(folder, 4, seed=3, num_bad=0)
    store, layout = Store(str(tmp_path / "out")), Layout(f"date={DAYS[1]}")
    with ExitStack() as other:
        other.enter_context(hold_lease(store, layout, "another", 1e6))
        seen = pipeline.backfill(
            job, from_=DAYS[0], to=DAYS[2], only="failed", dry_run=True, allow_import=ALLOWED
        )
        progress = EndsTheOther(other, folder)
        done = pipeline.backfill(
            job, from_=DAYS[0], to=DAYS[2], only=only, allow_import=ALLOWED, progress=progress
        )
    assert [date_run.outcome for date_run in seen.dates] == ["left_out"] * 3
    assert progress.lines.count(f"waiting for another run of {DAYS[1]}") == 1
    outcome = ("no_input", 8) if only is None else ("left_out", None)
    assert [(date_run.date, date_run.outcome, date_run.exit_code) for date_run in done.dates] == [
        (day, *outcome) for day in DAYS
    ]
    assert done.to_dict()["dates"][1]["exit_code"] == done.dates[1].exit_code
    assert done.shown()["dates"][1]["outcome"] == outcome[0].replace("_", " ")


def test_a_killed_run_counts_as_failed(tmp_path: Path):
    job, layout = job_over(tmp_path), Layout(f"date={DAYS[0]}")
    build_images(tmp_path / "in" / DAYS[0], 4, seed=3, num_bad=0)
    store = Store(str(tmp_path / "out"))
    with hold_lease(store, layout, "killed", 1e6) as lease:
        path = layout.heartbeat(lease.epoch)
        last_words = json.loads(store.read_bytes(path))
    store.put(path, json.dumps({**last_words, "pid_started": 1.0}).encode())
    dates = {"from_": DAYS[0], "to": DAYS[0], "dry_run": True, "allow_import": ALLOWED}
    outcomes = {only: pipeline.backfill(job, only=only, **dates).dates[0].outcome for only in ONLY}
    assert outcomes == dict.fromkeys(ONLY, "left_out") | {"failed": "publish the first version"}
    [several] = pipeline.backfill(job, only="refused,failed", **dates).dates
    assert several.outcome == outcomes["failed"]


def test_hours_are_dates_of_their_own(tmp_path: Path):
    source = {"uri": str(tmp_path / "in" / "${date}" / "${hour}"), "format": "images"}
    partition = {"partition": "hour=${date}T${hour}"}
    job = write_job(tmp_path / "job.yaml", source, str(tmp_path / "out"), sink=partition)
    hours = {"from_": f"{DAYS[0]}T22", "to": f"{DAYS[1]}T01", "every": "hour"}
    build_images(tmp_path / "in" / DAYS[0] / "23", 4, seed=3, num_bad=0)
    planned = pipeline.backfill(job, **hours, dry_run=True, allow_import=ALLOWED)
    names = [f"{DAYS[0]}T22", f"{DAYS[0]}T23", f"{DAYS[1]}T00", f"{DAYS[1]}T01"]
    assert [date_run.date for date_run in planned.dates] == names
    assert planned.dates[1].outcome == "publish the first version"
    seen = pipeline.status(job, **hours, allow_import=ALLOWED)
    assert [partition.partition for partition in seen.partitions] == [
        f"hour={name}" for name in names
    ]
    assert seen.count() == {"no_input": 3, "missing": 1}
    with pytest.raises(
        JobError, match=r"\$\{hour\} needs a date with an hour, such as 2026-11-22T05"
    ):
        pipeline.backfill(job, from_=DAYS[0], to=DAYS[1], allow_import=ALLOWED)
    with pytest.raises(JobError, match=r"must contain \$\{date\}T\$\{hour\}"):
        pipeline.backfill(job_over(tmp_path), **hours, allow_import=ALLOWED)
    daily = write_job(
        tmp_path / "job.yaml", source, str(tmp_path / "out"), sink={"partition": "hour=${hour}"}
    )
    days = {"from_": DAYS[0], "to": DAYS[1], "every": "hour"}
    with pytest.raises(JobError, match="the same for several dates"):
        pipeline.backfill(daily, **days, allow_import=ALLOWED)


def test_invalid_arguments_are_refused_before_anything_runs(tmp_path: Path):
    job = job_over(tmp_path)
    loaded = pipeline.load_job(job, date=DAYS[0])
    with pytest.raises(JobError, match="the job is already loaded: give its file or mapping"):
        pipeline.backfill(loaded, from_=DAYS[0])
    with pytest.raises(
        JobError, match="only stale,late: write one of missing, stale, failed, refused"
    ):
        pipeline.backfill(job, from_=DAYS[0], only="stale,late")
    with pytest.raises(JobError, match="--from is after --to"):
        pipeline.backfill(job, from_=DAYS[1], to=DAYS[0])
    with pytest.raises(JobError, match=r"the same for several dates: it must contain \$\{date\}"):
        pipeline.backfill(job_over(tmp_path, "number=1"), from_=DAYS[0], to=DAYS[1])
    assert not (tmp_path / "out").exists()


THREE_DAYS = [dt.date(2026, 11, day) for day in (1, 2, 3)]


class MadeUpDates:
    """Each date ends with a code; notes when it was done, and on which of several Rays."""

    def __init__(self, codes: Mapping[int, int]) -> None:
        self.codes = codes
        self.done: list[tuple[int, int]] = []
        self._rays: list[Any] = []

    def do(self, day: dt.date, progress: object) -> tuple[DateRun, bool]:
        from pipeline.execution.caller import SHARING

        sharing = SHARING.get()
        if sharing not in self._rays:
            self._rays.append(sharing)
        self.done.append((day.day, self._rays.index(sharing)))
        code = self.codes.get(day.day, 0)
        return DateRun(date_text(day), "-", code), code == 6


@pytest.mark.parametrize(
    ("codes", "done", "ends"),
    [
        ({}, [(1, 0), (2, 0), (3, 0)], [0, 0, 0]),
        ({1: 3, 2: 8}, [(1, 0), (2, 0), (3, 0)], [3, 8, 0]),
        ({1: 7}, [(1, 0), (2, 1), (3, 1)], [7, 0, 0]),  # after trouble with Ray, a new one
        ({2: 6}, [(1, 0), (2, 0)], [0, 6, 6]),
    ],
)
def test_a_failed_date_does_not_stop_the_others_but_a_stop_does(
    codes: dict[int, int], done: list[tuple[int, int]], ends: list[int]
):
    dates: Any = MadeUpDates(codes)
    runs = do_all(dates, THREE_DAYS, Silent())
    assert dates.done == done
    assert [date_run.exit_code for date_run in runs] == ends
    assert [date_run.date for date_run in runs] == [*map(date_text, THREE_DAYS)]


def test_newest_first_keeps_the_results_in_order_of_dates():
    dates: Any = MadeUpDates({})
    runs = do_all(dates, THREE_DAYS[::-1], Silent())
    assert [day for day, _ in dates.done] == [3, 2, 1]
    assert [date_run.date for date_run in runs] == [*map(date_text, THREE_DAYS)]
