"""Forty dates, kills, and two backfills at once: each date is computed once, and status knows."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.runs.cli import Result, start, wait_until, working
from support.runs.week import Week, outcomes

pytestmark = [pytest.mark.no_ray, pytest.mark.slow, pytest.mark.timeout(900)]

DAYS = [str(dt.date(2026, 10, 12) + dt.timedelta(days=number)) for number in range(40)]
KILLED, REFUSED, LATE = DAYS[3], DAYS[7], DAYS[11]
NUM_ROWS = 16


def ended(process: subprocess.Popen[str]) -> Result:
    stdout, stderr = process.communicate(timeout=600)
    return Result(process.returncode, stdout, stderr)


def kill(process: subprocess.Popen[str]) -> None:
    """End a command as no handler sees it: what works, and what looks after that."""
    os.kill(working(process).pid, signal.SIGKILL)
    process.kill()
    process.wait()


def published(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("predictions/date=*/_SUCCESS"))


def reports(folder: Path, day: str) -> list[dict[str, Any]]:
    paths = sorted(folder.glob(f"reports/date={day}/*/report.json"))
    return [json.loads(path.read_text()) for path in paths]


def states(week: Week) -> Counter[str]:
    return Counter(row["state"] for row in week.rows().values())


def test_forty_dates_two_kills_and_two_backfills_at_once(tmp_path: Path):
    """All photos of one day are broken, and those of another one come later."""
    weeks = Week(
        tmp_path, DAYS, NUM_ROWS, num_bad=1, gates={"min_rows": 10, "max_error_pct": 20.0},
    )  # fmt: skip
    for photo in [*(tmp_path / "in" / REFUSED).rglob("*.jpg")][:9]:
        photo.write_bytes(b"no photo")
    (tmp_path / "in" / LATE).rename(tmp_path / "later")
    out = tmp_path / "out"
    env = {"PIPELINE_FAILPOINT": "slice_done:kill"}
    run = start("run", weeks.job, "--date", KILLED, env=env)
    run.communicate(timeout=120)
    assert weeks.seen(KILLED)["state"] == "interrupted"

    first = weeks.start("--newest-first")
    wait_until(lambda: len(published(out)) >= 5, first)
    during = states(weeks)
    assert during["complete"] >= 5
    assert during["running"] <= 1
    kill(first)
    after_kill = published(out)
    killed = states(weeks)
    assert (killed["running"], killed["complete"]) == (0, len(after_kill))

    both = [weeks.start(), weeks.start("--newest-first")]
    done = [*map(ended, both)]
    assert [each.code for each in done] == [3, 3], [each.stderr for each in done]
    for each in done:
        last = each.stderr.splitlines()[-1]
        assert f"pipeline backfill {weeks.job}" in last
        by_day = dict(zip(DAYS, outcomes(each), strict=True))
        assert by_day[LATE] == ("no_input", 8)
        assert by_day[REFUSED] == ("refused", 3)
        others = {day: by_day[day] for day in DAYS if day not in (LATE, REFUSED)}
        assert set(others.values()) <= {("published", 0), ("nothing_to_do", 0)}
    new = Counter(
        day
        for each in done
        for day, outcome in zip(DAYS, outcomes(each), strict=True)
        if outcome[0] == "published"
    )
    assert set(new.values()) == {1}, "each date once"
    assert len(new) + len(after_kill) == len(DAYS) - 2
    assert states(weeks) == {"complete": 38, "refused": 1, "no_input": 1}

    (tmp_path / "later").rename(tmp_path / "in" / LATE)
    late = weeks.backfill("--only", "missing")
    assert dict(zip(DAYS, outcomes(late), strict=True))[LATE] == ("published", 0)
    rows = weeks.rows()
    assert {rows[day]["version"] for day in DAYS if day != REFUSED} == {1}
    for day in DAYS:
        found = reports(out, day)
        assert sum(each["rows"]["computed"] or 0 for each in found) <= NUM_ROWS, "computed once"
        # The backfill may have been killed between a publication and its report.
        assert sum(each["status"] == "published" for each in found) <= (day != REFUSED)
