"""Whole runs of every task: each row has a prediction or a reason, on dates that are compared."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import duckdb
import jsonschema
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import yaml
from support.runs.cli import pipeline, write_job
from support.runs.published_rows import read_predictions
from support.runs.run_cases import CASES, SCHEMA, RunCase
from support.servers.commandserver import OF_TRANSFORMERS

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import current_manifest
from pipeline.storage.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.no_ray(*OF_TRANSFORMERS)]

DATES = ("2026-11-24", "2026-11-25")


def job_of(folder: Path, case: RunCase) -> str:
    drift = {"score_drift": {"mode": "fail", "min_rows": 10}}
    gates = {"max_error_pct": 95.0, "max_score_diff": 1e-4, **drift}
    run = {"slice_rows": 16, "reuse": "content"}
    sections = {"model": case.model, "run": run, "gates": gates, **case.sections}
    return write_job(folder / "job.yaml", case.source, str(folder / "out"), **sections)


def require_same_after_kills(job: str, folder: Path, *options: str) -> None:
    """Run a job undisturbed, and into another output with two kills; hold these to each other."""
    undisturbed, killed = str(folder / "undisturbed"), str(folder / "killed")
    asked = ("run", job, *options, "--set", "run.slice_rows=10")
    done = pipeline(*asked, "--set", f"sink.uri={undisturbed}", timeout_s=600)
    assert done.code == 0, done.stderr
    for number in (2, 1):
        env = {"PIPELINE_FAILPOINT": f"slice_done:kill:{number}"}
        done = pipeline(*asked, "--set", f"sink.uri={killed}", env=env, timeout_s=600)
        assert done.code == -signal.SIGKILL, done.stderr
    done = pipeline(*asked, "--set", f"sink.uri={killed}", timeout_s=600)
    assert done.code == 0, done.stderr
    assert pipeline("verify", killed).code == 0
    compared = pipeline("diff", undisturbed, killed, "--fail-over", "0%")
    assert compared.code == 0, compared.stdout + compared.stderr


def quarantined(folder: Path, date: str) -> dict[str, str]:
    rows = ds.dataset(folder / "out" / "quarantine" / f"date={date}", format="parquet").to_table()
    return dict(zip(rows["row_id"].to_pylist(), rows["reason"].to_pylist(), strict=True))


def require_outcomes(folder: Path, case: RunCase, date: str) -> pa.Table:
    """Hold what a date published to what is expected of each row; return the predictions."""
    bad = quarantined(folder, date)
    table = read_predictions(str(folder / "out"), f"date={date}")
    assert table["row_id"].to_pylist() == [row for row in case.ids if row not in bad]
    assert {row: bad.get(row) for row in case.reasons} == case.reasons
    assert {why for row, why in bad.items() if row not in case.reasons} <= case.may_fail
    assert table.num_rows > len(case.ids) // 4
    assert table[case.column].null_count == 0
    assert table.schema.field(case.column).type == case.type
    case.require(table.to_pylist())
    return table


def run(*arguments: str) -> dict[str, Any]:
    done = pipeline(*arguments, "--json", timeout_s=500)
    assert done.code == 0, done.stderr
    return done.json


def statuses(report: dict[str, Any]) -> dict[str, str]:
    return {gate["name"]: gate["status"] for gate in report["gates"]}


@pytest.mark.parametrize("name", CASES)
def test_every_row_has_a_prediction_or_a_reason_and_the_next_date_is_held_to_it(
    name: str, tmp_path: Path
):
    case = CASES[name](tmp_path)
    job, out, golden = job_of(tmp_path, case), str(tmp_path / "out"), str(tmp_path / "g.parquet")
    assert run("plan", job, "--date", DATES[0])["model"]["tried"].startswith("ok: ")
    run("golden", job, "--rows", "4", "--out", golden)
    judged = ("--set", f"gates.golden.uri={golden}")
    first = run("run", job, "--date", DATES[0], *judged)
    table = require_outcomes(tmp_path, case, DATES[0])
    if "num_output_tokens" in table.column_names:
        assert first["written"]["output_tokens"] >= sum(table["num_output_tokens"].to_pylist())
        assert statuses(first)["min_agreement_pct"] == "pass"
    if name == "records":
        require_records(tmp_path, table)
    second = run("run", job, "--date", DATES[1], *judged)
    require_outcomes(tmp_path, case, DATES[1])
    if "path" in case.model and table.num_rows > 50:  # of few all are predicted again as a check
        assert second["rows"]["carried"]
    assert {statuses(report)["golden"] for report in (first, second)} == {"pass"}
    manifest = current_manifest(Store(out), Layout(f"date={DATES[1]}"))
    assert manifest is not None
    assert case.numbers <= {*manifest.distribution["numbers"]}
    assert bool(manifest.distribution["labels"]) == (name not in ("score", "embed")), (
        "labels, or why texts ended"
    )
    assert run("run", job, "--date", DATES[1], *judged)["status"] == "nothing_to_do"
    assert run("retry", job, "--date", DATES[1])["status"] in ("published", "nothing_to_do")
    for command in ("verify", "inspect"):
        run(command, out, "--partition", f"date={DATES[1]}")
    assert case.column in run("diff", out)["columns"]


def require_records(folder: Path, table: pa.Table) -> None:
    """Each text is a record of the schema, with a typed column for each of its names, which DuckDB
    and pandas see alike."""
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for row in table.to_pylist():
        record = json.loads(row["text"])
        validator.validate(record)
        assert {name: row[name] for name in SCHEMA["properties"]} == {
            name: record.get(name) for name in SCHEMA["properties"]
        }
    files = f"{folder}/out/predictions/*/*.parquet"
    relation = duckdb.read_parquet(files)
    types = dict(zip(relation.columns, map(str, relation.types), strict=True))
    assert {name: types[name] for name in SCHEMA["properties"]} == {
        "label": "VARCHAR",
        "score": "DOUBLE",
        "mood": "VARCHAR",
        "stars": "BIGINT",
        "named": "VARCHAR[]",
        "sure": "BOOLEAN",
        "place": 'STRUCT("row" BIGINT)',
        "entries": 'STRUCT("at" BIGINT)[]',
    }
    query = "select count(*), sum(stars), count(place.row) from relation where len(named) <= 2"
    [(count, stars, places)] = duckdb.sql(query).fetchall()
    assert (count, stars) == (len(table), sum(table["stars"].to_pylist()))
    assert places == sum(place is not None for place in table["place"].to_pylist())
    frame = table.to_pandas()
    assert frame["stars"].between(1, 5).all()
    assert frame["score"].dtype == "float64"
    assert "`list<" in (folder / "out" / "README.md").read_text()


def test_kills_change_no_written_record(tmp_path: Path):
    job = job_of(tmp_path, CASES["records"](tmp_path))
    require_same_after_kills(job, tmp_path, "--date", DATES[0])


def test_a_schema_in_a_file_is_the_same_and_one_that_is_refused_is_one_line(tmp_path: Path):
    job = Path(job_of(tmp_path, CASES["records"](tmp_path)))
    inline = run("plan", str(job), "--date", DATES[0])["fingerprint"]
    document = yaml.safe_load(job.read_text())
    generate = document["model"]["generate"]
    (tmp_path / "schema.json").write_text(json.dumps(generate["schema"]))
    generate["schema"] = str(tmp_path / "schema.json")
    job.write_text(yaml.safe_dump(document))
    assert run("plan", str(job), "--date", DATES[0])["fingerprint"] == inline
    generate["schema"] = {"type": "object", "properties": {"a": {"pattern": "a+"}}}
    job.write_text(yaml.safe_dump(document))
    for verb in ("plan", "run"):
        done = pipeline(verb, str(job), "--date", DATES[0])
        assert done.code == 2
        assert 'generate.schema: properties.a: "pattern" is not done here' in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
