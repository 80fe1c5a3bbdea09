"""A run that writes texts tries some rows first: its slices take half a minute, for good."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from integration.test_generate_runs import job_of
from support.models.choosing import TEXTS
from support.runs.cli import Result, pipeline
from support.servers.rayhead import RayHead

from pipeline.commit.plan_store import plan_from_json
from pipeline.commit.published.read import read_predictions
from pipeline.planning.plan import Plan

pytestmark = [pytest.mark.slow, pytest.mark.one_ray]

DATE, NEXT = "2026-11-24", "2026-11-25"
TRIES = "rows, for slices of half a minute"
NUM_ROWS = 40 * len(TEXTS)


def run(job: str, date: str = DATE, **options: Any) -> Result:
    return pipeline("run", job, "--date", date, "--json", **options)


def without_slice_rows(job: str, **run: Any) -> str:
    document = yaml.safe_load(Path(job).read_text())
    document["run"] = {"reuse": "off", **run}
    Path(job).write_text(yaml.safe_dump(document))
    return job


def plans(out: Path, date: str = DATE) -> list[Path]:
    return [*(out / "_control" / f"date={date}" / "plan").iterdir()]


def read_plan(path: Path) -> Plan:
    return plan_from_json(path.read_bytes(), path.stem)


def stored_plan(out: Path, date: str = DATE) -> Plan:
    [path] = plans(out, date)
    return read_plan(path)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A job some of whose rows cannot be predicted."""
    texts = [f"{text} {number}" for number in range(40) for text in TEXTS]
    texts[5::17] = ["cat " * 5_000] * len(texts[5::17])
    folder = tmp_path_factory.mktemp("slices")
    return without_slice_rows(job_of(folder, texts), price_per_node_hour=2.0)


@pytest.fixture(scope="module")
def killed(job: str) -> Plan:
    """The plan of a run that was killed in the middle."""
    done = run(job, env={"PIPELINE_FAILPOINT": "slice_done:kill:3"})
    assert done.code < 0, done.stderr
    assert TRIES in done.stderr
    return stored_plan(Path(job).parent / "out")


@pytest.fixture(scope="module")
def resumed(job: str, killed: Plan) -> Result:
    # What was tried is gone, so that this run could not cut the same slices by itself.
    shutil.rmtree(Path(job).parent / "out" / "_control" / "profiles")
    done = run(job)
    assert done.code == 0, done.stderr
    return done


def test_a_killed_run_goes_on_with_the_slices_of_its_plan(job: str, killed: Plan, resumed: Result):
    out = Path(job).parent / "out"
    assert killed.probe is not None
    assert killed.probe.num_rows == min(64, NUM_ROWS // 10)
    assert TRIES not in resumed.stderr
    assert stored_plan(out).units == killed.units
    slices = resumed.json["slices"]
    assert slices["resumed"] >= 3
    assert slices["total"] == killed.num_slices == slices["resumed"] + slices["computed"]


def test_what_it_publishes_is_what_an_undisturbed_run_publishes(job: str, resumed: Result):
    out = Path(job).parent / "out"
    other = str(out.parent / "other")
    whole = pipeline("run", job, "--date", DATE, "--set", f"sink.uri={other}", "--json")
    assert whole.code == 0, whole.stderr
    assert TRIES in whole.stderr
    parts = [[part["part"] for part in done.json["startup"]] for done in (whole, resumed)]
    assert ["tried_rows" in each for each in parts] == [True, False]
    both = [read_predictions(uri, f"date={DATE}") for uri in (str(out), other)]
    columns = ["row_id", "text", "finish_reason", "num_input_tokens", "num_output_tokens"]
    assert both[0].select(columns) == both[1].select(columns)
    assert resumed.json["reasons"] == whole.json["reasons"] != {}


def test_its_forecast_is_in_its_first_lines_and_in_its_report(job: str, resumed: Result):
    report = resumed.json
    forecast, written = report["forecast"], report["written"]
    assert "expecting " in resumed.stderr
    assert forecast["rows"] == report["rows"]["computed"]
    for name in ("input_tokens", "output_tokens", "minutes", "cost"):
        assert 0 < forecast[name]["low"] <= forecast[name]["value"] <= forecast[name]["high"]
    # Of two hundred rows and forty tried ones: within five standard errors.
    for name in ("input_tokens", "output_tokens"):
        off = 5 / 1.96 * (forecast[name]["high"] - forecast[name]["value"])
        assert abs(written[name] - forecast[name]["value"]) < off


def test_the_next_partition_takes_over_what_was_tried(job: str, resumed: Result):
    out = Path(job).parent / "other"
    at = ("--date", NEXT, "--set", f"sink.uri={out}", "--json")
    planned = pipeline("plan", job, *at, "--no-try").json
    done = pipeline("run", job, *at)
    assert done.code == 0, done.stderr
    assert TRIES not in done.stderr
    first, second = (stored_plan(out, date).probe for date in (DATE, NEXT))
    assert first == second
    assert first is not None
    assert planned["forecast"]["tried_by"] == first.measured_by
    assert planned["slices"] == stored_plan(out, NEXT).num_slices


def test_a_plan_tries_rows_only_if_it_is_asked(job: str, tmp_path: Path):
    at = ("--date", DATE, "--set", f"sink.uri={tmp_path}", "--no-try", "--json")
    asked = pipeline("plan", job, *at).json
    assert asked["forecast"] == "unknown until rows are tried: pipeline plan --probe"
    probed = pipeline("plan", job, *at, "--probe")
    assert probed.code == 0, probed.stderr
    assert probed.json["forecast"]["rows"] == NUM_ROWS
    assert probed.json["forecast"]["tried_rows"] == min(64, NUM_ROWS // 10)
    assert probed.json["fingerprint"] == asked["fingerprint"]
    assert not [*tmp_path.iterdir()]


def test_slices_that_the_job_sizes_are_not_tried_for(job: str, tmp_path: Path):
    at = ("--date", DATE, "--set", f"sink.uri={tmp_path}", "--json")
    done = pipeline("run", job, *at, "--set", "run.slice_rows=50", "--set", "run.limit_rows=100")
    assert done.code == 0, done.stderr
    assert TRIES not in done.stderr
    assert stored_plan(tmp_path).probe is None
    assert done.json["slices"]["total"] == 2
    assert done.json["forecast"] is None


def test_on_a_cluster_they_are_tried_there(job: str, tmp_path: Path, ray_head: RayHead):
    at = ("--date", DATE, "--set", f"sink.uri={tmp_path}", "--address", ray_head.address, "--json")
    done = pipeline("run", job, *at, env=ray_head.secret)
    assert done.code == 0, done.stderr
    probe = stored_plan(tmp_path).probe
    assert probe is not None
    assert done.json["forecast"]["tried_rows"] == probe.num_rows


def test_a_retry_has_slices_by_the_same_probe(job: str, resumed: Result):
    out, at = Path(job).parent / "out", ("--date", DATE, "--json")
    retried = pipeline("retry", job, *at)
    assert retried.code == 0, retried.stderr
    assert TRIES not in retried.stderr
    first, *others = {read_plan(path).probe for path in plans(out)}
    assert len(plans(out)) == 2
    assert first is not None
    assert not others


def test_rows_that_cannot_be_tried_are_no_failure_of_the_run(tmp_path: Path):
    job = without_slice_rows(job_of(tmp_path, ["a film"]))
    rows = {"id": [str(n) for n in range(100)], "body": pa.nulls(100, pa.string())}
    pq.write_table(pa.table(rows), tmp_path / "in" / "a.parquet")
    done = run(job)
    assert "so slices have a number of tokens: none of them could be read" in done.stderr
    assert done.code == 3, done.stderr  # as without it: no row has a prediction
    assert "max_error_pct" in done.stderr
