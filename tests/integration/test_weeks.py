"""No run is lost: real runs and backfills are watched and stopped from outside, and continue."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from models import LABELS
from support import HANG_S
from support.inputs.photos import build_images
from support.runs.cli import Result, pipeline, start, wait_until, write_job

pytestmark = [pytest.mark.slow, pytest.mark.early]

DAYS = ["2026-11-22", "2026-11-23", "2026-11-24"]
NUM_ROWS = 48


class Week:
    """Days with photos, two of each day's unreadable, and what commands make of them."""

    def __init__(
        self, folder: Path, days: Sequence[str], num_rows: int, num_bad: int = 2, **sections: Any
    ) -> None:
        self.folder, self.days, self.sink = folder, days, str(folder / "out")
        for number, day in enumerate(days):
            build_images(folder / "in" / day, num_rows, seed=number, num_bad=num_bad)
        source = {"uri": str(folder / "in" / "${date}"), "format": "images"}
        sections = {"run": {"slice_rows": 8}, **sections}
        self.job = write_job(folder / "nightly.yaml", source, self.sink, **sections)

    @property
    def dates(self) -> tuple[str, ...]:
        """The options that name all days."""
        return ("--from", self.days[0], "--to", self.days[-1])

    def backfill(self, *options: str, env: dict[str, str] | None = None) -> Result:
        arguments = ("backfill", self.job, *self.dates, "--json", *options)
        return pipeline(*arguments, env=env, timeout_s=HANG_S)

    def start(self, *options: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        return start("backfill", self.job, *self.dates, "--json", *options, env=env)

    def run(self, day: str, *options: str) -> Result:
        return pipeline("run", self.job, "--date", day, "--json", *options)

    def rows(self) -> dict[str, dict[str, Any]]:
        """The rows of `status` of the output, by day."""
        done = pipeline("status", self.sink, "--json")
        assert done.code == 0, done.stderr
        return {row["partition"].removeprefix("date="): row for row in done.json["partitions"]}

    def seen(self, day: str, asked: str | None = None) -> dict[str, Any]:
        """The row of a day, of the output or of the job."""
        if asked is None:
            return self.rows()[day]
        done = pipeline("status", asked, "--from", day, "--to", day, "--json")
        assert done.code == 0, done.stderr
        row: dict[str, Any] = done.json["partitions"][0]
        return row


def outcomes(done: Result) -> list[tuple[str, int | None]]:
    """What became of each date of a backfill."""
    return [(each["outcome"], each["exit_code"]) for each in done.json["dates"]]


@pytest.mark.no_ray
def test_a_run_is_watched_and_stopped_from_outside_and_resumed(tmp_path: Path):
    model = {"factory": "stuck:slow", "labels": LABELS, "batch_size": 8}
    week = Week(tmp_path, DAYS, NUM_ROWS, model=model, run={"slice_rows": 8, "lease_ttl_s": 2.0})
    day, env = DAYS[0], {"PIPELINE_ALLOW_IMPORT": "stuck"}
    process = start("run", week.job, "--date", day, env=env)
    staging = tmp_path / "out" / "_control" / f"date={day}" / "staging"
    wait_until(lambda: any(staging.rglob("*-*-*.parquet")), process)
    row = week.seen(day)
    assert (row["state"], row["pid"] != process.pid, row["attempt"]) == ("running", True, 1)
    asked = pipeline("stop", week.sink, "--json")
    assert asked.json["asked"] == row["run_id"]
    _, stderr = process.communicate(timeout=HANG_S)
    assert process.returncode == 6, stderr
    error, again = stderr.splitlines()[-2:]
    assert "pipeline stop by " in error
    assert again.endswith(f"pipeline run {week.job} --date {day}")

    row = week.seen(day)
    assert (row["state"], row["exit_code"], row["version"]) == ("interrupted", 6, None)
    assert 0 < row["done_pct"] < 100
    done = pipeline("run", week.job, "--date", day, "--json", env=env)
    assert done.code == 0, done.stderr
    assert done.json["rows"]["resumed"] >= 8
    row = week.seen(day)
    assert (row["state"], row["version"], row["attempt"]) == ("complete", 1, 2)


@pytest.mark.no_ray
def test_a_backfill_runs_what_it_can_and_the_next_one_runs_the_rest(tmp_path: Path):
    week = Week(tmp_path, DAYS, NUM_ROWS, gates={"min_rows": 10, "max_error_pct": 5.0})
    for photo in [*(tmp_path / "in" / DAYS[1]).rglob("*.jpg")][:9]:
        photo.write_bytes(b"no photo")
    hidden = (tmp_path / "in" / DAYS[2]).rename(tmp_path / "later")
    first, bad, late = ("publish the first version", None), ("refused", 3), ("no_input", 8)
    planned = week.backfill("--dry-run")
    assert planned.code == 0, planned.stderr
    assert outcomes(planned)[:2] == [first, first]
    assert outcomes(planned)[2][0].startswith("end with 8: ")
    assert not (tmp_path / "out").exists()

    done = week.backfill("--ok-exit", "8")
    assert outcomes(done) == [("published", 0), bad, late]
    assert done.code == done.json["exit_code"] == 3, "the worst of them"
    dates = f"--from {DAYS[0]} --to {DAYS[2]}"
    command = f": pipeline backfill {week.job} {dates} --json --ok-exit 8"
    assert done.stderr.splitlines()[-1].endswith(command)

    hidden.rename(tmp_path / "in" / DAYS[2])
    again = week.backfill("--only", "missing", "--newest-first")
    assert again.code == 0, again.stderr
    assert outcomes(again) == [("left_out", None), ("left_out", None), ("published", 0)]
    last = week.backfill()
    assert outcomes(last) == [("nothing_to_do", 0), bad, ("nothing_to_do", 0)]
    for day in (DAYS[0], DAYS[2]):
        assert week.seen(day)["version"] == 1, "computed once"


@pytest.mark.ray
def test_a_stop_ends_the_backfill_and_the_same_command_continues(tmp_path: Path):
    model = {"factory": "stuck:slow", "labels": LABELS, "batch_size": 8}
    week = Week(tmp_path, DAYS, NUM_ROWS, model=model, run={"slice_rows": 8, "lease_ttl_s": 2.0})
    env = {"PIPELINE_ALLOW_IMPORT": "stuck"}
    options = ("--from", DAYS[0], "--to", DAYS[-1], "--json")
    process = start("backfill", week.job, *options, env=env)
    control = tmp_path / "out" / "_control"
    wait_until(lambda: any(control.glob(f"date={DAYS[1]}/staging/**/*-*-*.parquet")), process)
    process.terminate()
    stdout, stderr = process.communicate(timeout=HANG_S)
    assert process.returncode == 6, stderr
    stopped = Result(6, stdout, stderr)
    assert outcomes(stopped) == [("published", 0), ("stopped", 6), ("not_begun", 6)]
    assert f"pipeline backfill {week.job}" in stderr.splitlines()[-1]
    done = week.backfill(env=env)
    assert done.code == 0, done.stderr
    starts = [line for line in done.stderr.splitlines() if line.endswith("starting Ray")]
    assert len(starts) == 1, "all dates share it"
    assert outcomes(done) == [("nothing_to_do", 0), ("published", 0), ("published", 0)]
    assert sum(line.endswith("starting Ray") for line in done.stderr.splitlines()) == 1
    assert week.seen(DAYS[1])["attempt"] == 2
