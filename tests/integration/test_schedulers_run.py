"""Files to copy are true: Airflow 3 and Dagster run theirs, in environments without this package.

`make schedulers` makes the environments and names them.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.inputs.photos import build_images
from support.runs.checkout import PYTHONPATH, ROOT
from support.runs.cli import pipeline, write_job

FOLDER = ROOT / "jobs" / "schedulers"
AIRFLOW, DAGSTER = os.environ.get("AIRFLOW"), os.environ.get("DAGSTER_PYTHON")
DAYS = ["2026-11-23", "2026-11-24"]
NUM_ROWS = 32
REFUSED = "2026-11-25"
_TIMEOUT_S = 600

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]


class Nights:
    """A job over a folder for each date, and how a scheduler is told of it."""

    def __init__(self, folder: Path) -> None:
        for number, day in enumerate([*DAYS, REFUSED]):
            num_bad = 8 if day == REFUSED else 0
            build_images(folder / "in" / day, NUM_ROWS, seed=number, num_bad=num_bad)
        self.folder, self.sink = folder, folder / "out"
        source = {"uri": str(folder / "in" / "${date}"), "format": "images"}
        gates = {"min_rows": 10, "max_error_pct": 1.0}
        self.job = write_job(folder / "nightly.yaml", source, str(self.sink), gates=gates)
        path = os.pathsep.join([PYTHONPATH, str(ROOT)])
        inner = [f"PYTHONPATH={path}", "PIPELINE_ALLOW_IMPORT=models"]
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "RAY_"))},
            "PIPELINE_COMMAND": shlex.join(
                ["env", *inner, sys.executable, "-m", "pipeline", "run"]
            ),
            "PIPELINE_JOB": self.job,
        }

    def state(self, day: str) -> dict[str, Any]:
        """What `pipeline status` says of a date."""
        done = pipeline("status", str(self.sink), "--json")
        assert done.code == 0, done.stderr
        rows = {row["partition"]: row for row in done.json["partitions"]}
        return rows.get(f"date={day}", {})


class Airflow(Nights):
    """An Airflow with the DAG alone, whose retries come at once."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        dags = folder / "dags"
        dags.mkdir()
        text = (FOLDER / "airflow_dag.py").read_text()
        assert "dt.timedelta(minutes=10)" in text
        text = text.replace("dt.timedelta(minutes=10)", "dt.timedelta(seconds=1)")
        (dags / "nightly.py").write_text(text)
        self.environment |= {
            "AIRFLOW_HOME": str(folder / "airflow"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        }
        self.command("db", "migrate")
        self.command("dags", "reserialize")

    def command(self, *arguments: str) -> tuple[int, str]:
        assert AIRFLOW is not None
        done = subprocess.run(
            [str(ROOT / AIRFLOW), *arguments],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        return done.returncode, done.stdout

    def test(self, day: str) -> tuple[int, str]:
        """The night of a date, which is the one after it."""
        night = dt.date.fromisoformat(day) + dt.timedelta(days=1)
        return self.command("dags", "test", "nightly", night.isoformat())


@pytest.mark.skipif(AIRFLOW is None, reason="make schedulers installs Airflow")
def test_airflow_runs_two_dates_once_and_does_not_retry_a_refusal(tmp_path: Path):
    nights = Airflow(tmp_path)
    for day in DAYS:
        code, text = nights.test(day)
        assert code == 0, text
        assert nights.state(day)["version"] == 1, text
    code, text = nights.test(DAYS[0])
    assert code == 0, text
    assert "nothing to do" in text
    assert nights.state(DAYS[0])["version"] == 1

    code, text = nights.test(REFUSED)
    assert code != 0
    assert "exit code 3, which no retry changes" in text
    assert nights.state(REFUSED)["attempt"] == 1
    code, text = nights.test("2026-11-26")
    assert code == 0, text
    assert "no input" in text


MATERIALISE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import dagster as dg
from dagster_assets import labels
found = {}
for day in sys.argv[2:]:
    done = dg.materialize([labels], partition_key=day, raise_on_error=False)
    events = done.asset_materializations_for_node("labels")
    rows = [event.metadata["rows_predicted"].value for event in events]
    tries = sum(event.event_type_value == "STEP_RESTARTED" for event in done.all_events)
    found[day] = {"ok": done.success, "rows": rows, "restarts": tries}
print(json.dumps(found))
"""


@pytest.mark.skipif(DAGSTER is None, reason="make schedulers installs Dagster")
def test_dagster_materialises_two_partitions_and_fails_a_refusal_at_once(tmp_path: Path):
    nights = Nights(tmp_path)
    assert DAGSTER is not None
    days = [*DAYS, DAYS[0], REFUSED, "2026-11-26"]
    done = subprocess.run(
        [str(ROOT / DAGSTER), "-c", MATERIALISE, str(FOLDER), *days],
        env={**nights.environment, "DAGSTER_HOME": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    for day in DAYS:
        assert outcomes[day] == {"ok": True, "rows": [NUM_ROWS], "restarts": 0}
        assert nights.state(day)["version"] == 1
    assert outcomes[REFUSED] == {"ok": False, "rows": [], "restarts": 0}
    assert nights.state(REFUSED)["attempt"] == 1
    assert outcomes["2026-11-26"] == {"ok": True, "rows": [], "restarts": 0}
