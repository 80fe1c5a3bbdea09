"""Commands on an output whose parts are an Iceberg table: run, kill, verify, roll back, read."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from support.runs.cli import photos_job, pipeline
from support.runs.iceberg_sink import TABLE, newest, options_at, versions_of

from pipeline.storage.store import Store

pytestmark = pytest.mark.no_ray

DATE = "2026-11-24"


@pytest.mark.parametrize("point", ["before_table", "after_table"])
def test_commands_agree_on_the_rows_of_the_table(point: str, tmp_path: Path):
    catalog = {"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db"}
    sink = {"table": "iceberg", "table_options": {"catalog": catalog, "table": TABLE}}
    job = photos_job(tmp_path, 12, num_bad=2, sink=sink)
    out, options = f"{tmp_path}/out", options_at(f"{tmp_path}/catalog.db")

    def done(*arguments: str, code: int = 0, env: dict[str, str] | None = None) -> Any:
        ended = pipeline(*arguments, "--json", env=env)
        assert ended.code == code, ended.stderr
        return json.loads(ended.stdout) if ended.stdout else None

    def ids() -> list[str]:
        rows = newest(Store(out), options).scan().to_arrow().to_pylist()
        assert {row["date"] for row in rows} == {DATE}
        return sorted(row["row_id"] for row in rows)

    killed = pipeline("run", job, "--date", DATE, env={"PIPELINE_FAILPOINT": f"{point}:kill"})
    assert killed.code == -signal.SIGKILL
    done("run", job, "--date", DATE)
    first = ids()
    assert len(first) == 10
    assert versions_of(newest(Store(out), options)) == ["1"]
    done("verify", out)
    (tmp_path / "images" / next(iter(first))).unlink()
    done("run", job, "--date", DATE)
    assert len(ids()) == 9
    done("rollback", job, "--date", DATE)
    assert ids() == first
    done("gc", job, "--date", DATE, "--grace-s", "0")
    checks = {check["name"]: check for check in done("verify", out)["checks"]}
    assert checks["table"]["message"] == "the Iceberg table names the 1 parts"
    newest(Store(out), options).delete("label == 'red'")
    done("verify", out, code=1)
    assert {one["partition"] for one in done("status", out)["partitions"]} == {f"date={DATE}"}
