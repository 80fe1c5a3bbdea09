"""Measure a backfill of many small dates beside as many single runs.

    python tests/bench/backfill.py [MODEL] [--dates 40] [--single 40]

Each system has an output of its own. Aim: forty dates at least three times as fast as forty runs.
`date_s` are the seconds that a date of a backfill takes beyond starting Ray: (all - one) / (n - 1).
The last line is JSON.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import machine, today
from systems import Case, write_weights

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support/toys"))
from support.inputs.photos import build_images
from support.runs.cli import pipeline

FIRST = dt.date(2026, 1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure pipeline backfill.")
    parser.add_argument("model", nargs="?", default="mobilenet_v3_large")
    parser.add_argument("--dates", type=int, default=40)
    parser.add_argument("--photos", type=int, default=32, help="Of each date.")
    parser.add_argument("--single", type=int, default=40, help="How many single runs.")
    options = parser.parse_args()
    days = [str(FIRST + dt.timedelta(days=number)) for number in range(options.dates)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed, day in enumerate(days):
            build_images(folder / "in" / day, options.photos, seed=seed, num_bad=0)
        case = Case(
            folder, folder / "in/${date}", options.photos, write_weights(folder, options.model)
        )
        results = [single(case, days[: options.single])] if options.single else []
        one, whole = (backfill(case, few) for few in (days[:1], days))
        per_date_s = (whole["wall_s"] - one["wall_s"]) / max(1, len(days) - 1)
        results.append({**whole, "date_s": round(per_date_s, 2)})
        print(results[-1], flush=True)
    if results[0]["system"] == "single":
        each_s = results[0]["wall_s"] / options.single
        for result in results[1:]:
            result["times_as_fast"] = round(each_s * options.dates / result["wall_s"], 2)
    print(json.dumps({"date": today(), "machine": machine(), "results": results}))


def job_of(case: Case, name: str) -> str:
    sink = {"uri": str(case.folder / name), "partition": "date=${date}"}
    return case.job(name, case.folder / name, sink=sink)


def single(case: Case, days: list[str]) -> dict[str, Any]:
    job, begun = job_of(case, "single"), time.perf_counter()
    for day in days:
        done = pipeline("run", job, "--date", day, "--quiet")
        assert done.code == 0, done.stderr
    result = {"system": "single", "dates": len(days), "wall_s": time.perf_counter() - begun}
    print(result, flush=True)
    return result


def backfill(case: Case, days: list[str]) -> dict[str, Any]:
    job = job_of(case, f"backfill-{len(days)}")
    dates = ("--from", days[0], "--to", days[-1])
    begun = time.perf_counter()
    done = pipeline("backfill", job, *dates, "--json", timeout_s=3600)
    wall_s = time.perf_counter() - begun
    assert done.code == 0, done.stderr
    assert {each["outcome"] for each in done.json["dates"]} == {"published"}
    return {"system": "backfill", "dates": len(days), "wall_s": wall_s}


if __name__ == "__main__":
    main()
