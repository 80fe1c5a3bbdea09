"""An output, and a job over a folder of photos for each day."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.inputs.photos import build_images
from support.runs.cli import TIMEOUT_S, Result, pipeline, start, write_job


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
        return pipeline(*arguments, env=env, timeout_s=TIMEOUT_S * (1 + len(self.days) / 10))

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
