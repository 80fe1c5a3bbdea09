"""Whole runs over tables: categories from a file mean the same in every run, kill and retry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.runs.cli import pipeline, write_job
from support.runs.published_rows import read_predictions

from pipeline.commit.published.verify import verify_output

pytestmark = [pytest.mark.no_ray, pytest.mark.slow]
NUM_ROWS = 6
DATE = "2026-11-24"
AT = ("--date", DATE, "--json")


def write(path: Path, *plans: str) -> None:
    numbers = [float(row) for row in range(NUM_ROWS)]
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"n": numbers, "plan": (plans * NUM_ROWS)[:NUM_ROWS]}), path)


def job_of(folder: Path, *, factory: str = "models:sums", **features: Any) -> str:
    plan = {"column": "plan", "categories": str(folder / "plans.json"), "encoding": "index"}
    source = {
        "uri": str(folder / "in"),
        "format": "parquet",
        "features": ["n", {**plan, **features}],
    }
    model = {"factory": factory, "task": "regress", "targets": ["total", "largest"]}
    return write_job(
        folder / "job.yaml", source, str(folder / "out"), model=model, transform=None,
        run={"slice_rows": 2}, gates={"max_error_pct": 50},
    )  # fmt: skip


def totals(folder: Path, date: str = DATE) -> dict[str, float]:
    table = read_predictions(str(folder / "out"), f"date={date}")
    return dict(zip(table["row_id"].to_pylist(), table["total"].to_pylist(), strict=True))


def expected(*plans: str, known: list[str]) -> dict[str, float]:
    row_plans = (plans * NUM_ROWS)[:NUM_ROWS]
    return {f"a.parquet#{row}": float(row + known.index(p)) for row, p in enumerate(row_plans)}


def test_an_empty_text_keeps_its_index_in_every_run_and_after_a_kill(tmp_path: Path) -> None:
    plans, known = ("b", "", "a"), ["", "a", "b"]
    write(tmp_path / "in" / "a.parquet", *plans)
    (tmp_path / "plans.json").write_text(json.dumps(known))
    job = job_of(tmp_path)
    killed = pipeline("run", job, *AT, env={"PIPELINE_FAILPOINT": "slice_done:kill:1"})
    assert killed.code not in (0, 2), killed.stderr
    resumed = pipeline("run", job, *AT)
    assert resumed.code == 0, resumed.stderr
    assert resumed.json["rows"]["resumed"] > 0
    assert totals(tmp_path) == expected(*plans, known=known)
    again = pipeline("run", job, *AT)
    assert (again.code, again.json["status"]) == (0, "nothing_to_do")
    next_day = pipeline("run", job, "--date", "2026-11-25", "--json")
    assert next_day.code == 0, next_day.stderr
    assert totals(tmp_path, "2026-11-25") == totals(tmp_path)
    assert verify_output(str(tmp_path / "out"), f"date={DATE}", {})["status"] == "ok"

    same = job_of(tmp_path, categories=known)  # the list itself is what the file holds
    assert pipeline("run", same, *AT).json["status"] == "nothing_to_do"


def test_another_list_is_another_version_even_in_a_retry(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.parquet", "pro", "gold")
    (tmp_path / "plans.json").write_text('["pro"]')
    job = job_of(tmp_path)
    first = pipeline("run", job, *AT)
    assert (first.code, first.json["rows"]["quarantined"]) == (0, NUM_ROWS // 2)
    (tmp_path / "plans.json").write_text('["pro", "gold"]')
    plan = pipeline("plan", job, *AT).json
    assert plan["changed"] == "the job's source or row limit"
    second = pipeline("retry", job, *AT)
    assert (second.code, second.json["rows"]["quarantined"]) == (0, 0)
    why = "the source section or the columns of the job changed"
    assert f"all rows are computed again: date={DATE} version 1: {why}" in second.stderr
    assert totals(tmp_path) == expected("pro", "gold", known=["pro", "gold"])


def test_a_retried_row_has_the_categories_of_its_version(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.parquet", "pro", "basic")
    (tmp_path / "plans.json").write_text("basic\npro\n")
    job = job_of(tmp_path, factory="models:moody_sums")
    first = pipeline("run", job, *AT, env={"TEST_MOODY": "1"})
    assert first.code == 0, first.stderr
    assert first.json["rows"]["quarantined"] == 1
    done = pipeline("retry", job, *AT)
    assert done.code == 0, done.stderr
    assert totals(tmp_path) == expected("pro", "basic", known=["basic", "pro"])
