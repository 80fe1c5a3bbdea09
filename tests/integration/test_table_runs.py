"""Whole runs over tables: a retry sees the vocabulary of its version, a rerun computes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli import pipeline, write_job

from pipeline.commit.read import read_predictions
from pipeline.commit.verify import verify_output

pytestmark = [pytest.mark.one_ray, pytest.mark.slow]
NUM_ROWS = 6
DATE = "2026-11-24"
AT = ("--date", DATE, "--json")


def write(path: Path, *plans: str) -> None:
    numbers = [float(row) for row in range(NUM_ROWS)]
    pq.write_table(pa.table({"n": numbers, "plan": (plans * NUM_ROWS)[:NUM_ROWS]}), path)


def job_of(folder: Path, *, factory: str = "models:sums", **features: Any) -> str:
    plan = {"column": "plan", "vocabulary": str(folder / "plans.json"), "unknown": "own"}
    source = {
        "uri": str(folder / "in"),
        "format": "parquet",
        "features": ["n", {**plan, **features}],
    }
    model = {"factory": factory, "task": "regress", "targets": ["total", "largest"]}
    return write_job(
        folder / "job.yaml", source, str(folder / "out"), model=model, transform=None,
        run={"slice_rows": 4}, gates={"max_error_pct": 50},
    )  # fmt: skip


def totals(folder: Path) -> dict[str, float]:
    table = read_predictions(str(folder / "out"), f"date={DATE}")
    return dict(zip(table["row_id"].to_pylist(), table["total"].to_pylist(), strict=True))


def test_a_retry_and_a_rerun_go_by_the_vocabulary_that_was_kept(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.parquet", "pro", "basic")
    (tmp_path / "in" / "b.parquet").write_bytes(b"PAR1 no footer")
    job = job_of(tmp_path)
    first = pipeline("run", job, *AT)
    assert first.code == 0, first.stderr
    assert first.json["rows"] | {"predicted": NUM_ROWS, "quarantined": 1} == first.json["rows"]
    assert json.loads((tmp_path / "plans.json").read_text()) == ["basic", "pro"]
    again = pipeline("run", job, *AT)
    assert (again.code, again.json["status"]) == (0, "nothing_to_do")

    write(tmp_path / "in" / "b.parquet", "gold", "pro")
    done = pipeline("run", job, *AT)  # another input: a new plan, the same vocabulary
    assert done.code == 0, done.stderr
    assert json.loads((tmp_path / "plans.json").read_text()) == ["basic", "pro"]
    assert verify_output(str(tmp_path / "out"), f"date={DATE}", {})["status"] == "ok"
    names = ("a", "b")
    expected = {f"{n}.parquet#{row}": row + 1.0 for n in names for row in range(NUM_ROWS)}
    assert totals(tmp_path) == expected


def test_another_vocabulary_is_another_version(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.parquet", "pro", "gold")
    (tmp_path / "plans.json").write_text('["pro"]')
    job = job_of(tmp_path, unknown="quarantine")
    first = pipeline("run", job, *AT)
    assert (first.code, first.json["rows"]["quarantined"]) == (0, NUM_ROWS // 2)
    (tmp_path / "plans.json").write_text('["pro", "gold"]')
    told = pipeline("plan", job, *AT).json
    assert told["changed"] == "the input (a name, size or time of a shard, or a vocabulary)"
    second = pipeline("run", job, *AT)
    assert (second.code, second.json["rows"]["quarantined"]) == (0, 0)
    assert len(totals(tmp_path)) == NUM_ROWS


def test_a_retried_row_sees_the_vocabulary_of_its_version(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.parquet", "pro", "basic")
    job = job_of(tmp_path, factory="models:moody_sums")
    first = pipeline("run", job, *AT, env={"TEST_MOODY": "1"})
    assert first.code == 0, first.stderr
    assert first.json["rows"]["quarantined"] == 1
    (tmp_path / "plans.json").unlink()
    done = pipeline("retry", job, *AT)
    assert done.code == 0, done.stderr
    assert totals(tmp_path) == {f"a.parquet#{row}": row + 1.0 for row in range(NUM_ROWS)}
    assert not (tmp_path / "plans.json").exists()
