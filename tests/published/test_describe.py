"""Promise: `inspect`, `report` and `plan` show what there is, and write nothing."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from models import LABELS, TRANSFORM
from PIL import Image
from rich.console import Console
from support.runs.published import DAY, Rows, labels_of, publish_rows, put_report, snapshot
from support.runs.published_rows import read_predictions
from support.runs.report_examples import BARE, document_of
from typer.testing import CliRunner

import pipeline
from pipeline.commands.app import app
from pipeline.commit.layout import Layout, staged_name
from pipeline.commit.plan_store import adopt_plan
from pipeline.commit.publish import commit
from pipeline.core.errors import InfraError, JobError
from pipeline.core.figures import StageCounters
from pipeline.job.job import Job
from pipeline.operations.inspect import inspect
from pipeline.published.describe import _shown_columns, describe_output
from pipeline.published.verify import verify_output
from pipeline.report.document import Report
from pipeline.report.history import load_report
from pipeline.report.recorder import RunRecorder
from pipeline.report.showing.printed import render_document
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.preparing.prepare import prepare
from pipeline.storage.store import Store

pytestmark = pytest.mark.usefixtures("without_ray_here")

NEXT_DAY = "date=2026-11-25"
OPTIONS = RunOptions(allow_import=("models",))


def planned(job: Job) -> dict[str, Any]:
    return pipeline.plan(job, allow_import=["models"], tries=False)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def shown(document: dict, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render_document(document))
    return console.file.getvalue()


def report_of(run_id: str, partition: str = DAY) -> dict:
    return document_of(BARE["published"], run_id=run_id, partition=partition)


# What is published


def test_a_partition_is_described(usual_store: Store):
    rows = Rows(unreadable_shards=1)
    for version in (rows, dataclasses.replace(rows, edition=2)):
        manifest = publish_rows(usual_store, rows=version)
    before = snapshot(usual_store, "")
    output = describe_output(usual_store.uri, None, dict(usual_store.storage_options))
    assert (output["partition"], output["version"], output["kind"]) == (DAY, 2, "publish")
    assert output["run_id"] == manifest.run_id
    assert output["rows"] == {
        "total": 25,
        "predicted": 20,
        "quarantined": 5,
        "unreadable_shards": 1,
    }
    assert output["parts"] == [
        {"kind": "predictions", "parts": 2, "bytes": sum(p.size_bytes for p in manifest.parts)},
        {
            "kind": "quarantine",
            "parts": 2,
            "bytes": sum(p.size_bytes for p in manifest.quarantine_parts),
        },
    ]
    assert {label["label"]: label["rows"] for label in output["labels"]} == labels_of(rows)
    assert output["predictions"][0] == {"row_id": "shard-0.parquet#0", "label": "cat", "score": 0.5}
    assert len(output["predictions"]) == len(output["quarantine"]) == 5
    assert output["reasons"] == [
        {"reason": "truncated", "rows": 4},
        {"reason": "unreadable_shard", "rows": 1},
    ]
    assert output["quarantine"][-1]["row_id"] == "shard-4.parquet"
    assert {"column": "edition", "type": "int32"} in output["schema"]
    assert output["history"] == [1]
    json.dumps(output, allow_nan=False)
    assert snapshot(usual_store, "") == before, "describing writes nothing"


def test_all_partitions_are_listed_and_the_last_date_is_described(store: Store):
    publish_rows(store, NEXT_DAY, Rows(1))
    publish_rows(store, DAY, Rows(2))
    publish_rows(store, DAY, Rows(3))
    output = describe_output(store.uri, None, {})
    listed = [(entry["partition"], entry["version"]) for entry in output["partitions"]]
    assert listed == [(DAY, 2), (NEXT_DAY, 1)]
    assert output["newest"]["partition"] == NEXT_DAY  # whichever was published last
    for uri, partition in ((store.uri, NEXT_DAY), (f"{store.uri}/predictions/{NEXT_DAY}/", None)):
        assert describe_output(uri, partition, {})["partition"] == NEXT_DAY


def test_an_output_without_partitions_is_described(store: Store):
    publish_rows(store, None)
    for partition in (None, "all"):
        assert describe_output(store.uri, partition, {})["partition"] == "all"


@pytest.mark.parametrize("rows", [Rows(fail_every=1), Rows(num_slices=0), Rows(fail_every=0)])
def test_an_output_without_predictions_or_failures_is_described(store: Store, rows: Rows):
    publish_rows(store, rows=rows)
    output = describe_output(store.uri, None, {})
    assert bool(output["labels"]) == bool(output["predictions"]) == bool(labels_of(rows))
    assert shown(output)


def test_an_unpublished_partition_is_a_job_error(store: Store):
    with pytest.raises(JobError, match=f"^{store.uri}: nothing is published there$"):
        describe_output(store.uri, None, {})
    nothing = f"^{store.uri}: partition {NEXT_DAY} is not published: nothing is published there$"
    with pytest.raises(JobError, match=nothing):
        describe_output(store.uri, NEXT_DAY, {})
    for day in range(10, 15):
        publish_rows(store, f"date=2026-11-{day}", Rows(num_slices=0))
    days = ", ".join(f"date=2026-11-{day}" for day in range(10, 15))
    others = f"^{store.uri}: partition {NEXT_DAY} is not published; {{}} are, name one of them: "
    with pytest.raises(JobError, match=f"{others.format(5)}{days}$"):
        describe_output(store.uri, NEXT_DAY, {})
    publish_rows(store, "date=2026-11-15", Rows(num_slices=0))
    with pytest.raises(JobError, match=rf"{others.format(6)}{days}, \.\.\.$"):
        describe_output(store.uri, NEXT_DAY, {})


def test_a_missing_partition_is_answered_with_those_that_exist(store: Store):
    for edition, day in enumerate((DAY, NEXT_DAY)):
        publish_rows(store, day, Rows(edition))
    for ask in (lambda: read_predictions(store.uri), lambda: describe_output(store.uri, "all", {})):
        with pytest.raises(JobError, match=f"2 are, name one of them: {DAY}, {NEXT_DAY}"):
            ask()


def test_a_refused_partition_is_answered_with_its_last_run(store: Store):
    publish_rows(store)
    gates = [{"name": "max_error_pct", "status": "fail"}, {"name": "volume", "status": "pass"}]
    put_report(store, NEXT_DAY, "1-a", report_of("1-a", NEXT_DAY))
    put_report(store, NEXT_DAY, "2-b", document_of(BARE["refused"], run_id="2-b", gates=gates))
    message = (
        f"its last run, 2-b, was refused: max_error_pct; pipeline report .* --partition {NEXT_DAY}"
    )
    for ask in (
        lambda: read_predictions(store.uri, NEXT_DAY),
        lambda: describe_output(store.uri, NEXT_DAY, {}),
        lambda: verify_output(store.uri, NEXT_DAY, {}),
    ):
        with pytest.raises(JobError, match=message):
            ask()


def test_a_lost_part_is_an_error(store: Store):
    manifest = publish_rows(store)
    store.delete([manifest.parts[1].path])
    message = f"{manifest.parts[1].path}.*is gone"
    with pytest.raises(InfraError, match=message):
        describe_output(store.uri, None, {})


def test_rows_without_a_label_are_shown_with_their_first_plain_columns():
    vector = pa.list_(pa.float32(), 2)
    names = ["row_id", "uri", "label", *"abcdefg"]
    fields = [pa.field(name, vector if name == "b" else pa.string()) for name in names]
    assert _shown_columns(pa.schema(fields)) == ["row_id", "label", "a", "c", "d", "e"]
    score = pa.field("score", pa.float32())
    assert _shown_columns(pa.schema([*fields, score])) == ["row_id", "label", "score"]


# Reports


def test_the_latest_report_is_found_by_root_partition_run_and_file(usual_store: Store):
    options = dict(usual_store.storage_options)
    for partition, run_id in ((DAY, "1-a"), (DAY, "3-b"), (NEXT_DAY, "2-c"), (None, "0-d")):
        name = Layout(partition).name
        put_report(usual_store, partition, run_id, report_of(run_id, name))
    root = usual_store.uri
    for uri, partition, run_id, expected in (
        (root, None, None, "3-b"),
        (root, NEXT_DAY, None, "2-c"),
        (root, None, "1-a", "1-a"),
        (root, DAY, "1-a", "1-a"),
        (root, "all", None, "0-d"),
        (f"{root}/predictions/{NEXT_DAY}", None, None, "2-c"),
        (f"{root}/reports/{DAY}/1-a/report.json", None, None, "1-a"),
    ):
        report = load_report(uri, partition, run_id, options)
        name = {"2-c": NEXT_DAY, "0-d": "all"}.get(expected, DAY)
        assert report == Report(**report_of(expected, name))


def test_a_missing_report_is_a_job_error(store: Store):
    with pytest.raises(JobError, match="no report of any run; it has 0 reports"):
        load_report(store.uri, None, None, {})
    put_report(store, DAY, "1-a", report_of("1-a"))
    with pytest.raises(JobError, match="no report of run 2-b; it has 1 report"):
        load_report(store.uri, None, "2-b", {})
    with pytest.raises(JobError, match=f"reports/{NEXT_DAY}: no report"):
        load_report(store.uri, NEXT_DAY, "1-a", {})
    with pytest.raises(JobError, match="there is no such report"):
        load_report(f"{store.uri}/reports/{DAY}/x/report.json", None, None, {})


def test_a_stored_report_is_compared_with_the_one_before(store: Store):
    for run_id, busy_s in (("1-a", 4.0), ("2-b", 8.0)):
        facts = BARE["published"] | dict(run_id=run_id, partition=DAY)
        counters = {"predict": StageCounters(1000, 1000, busy_s=busy_s).to_dict()}
        facts |= dict(counters=counters, rows={"computed": 1000})
        put_report(store, DAY, run_id, document_of(facts, wall_s=20.0, streaming_wall_s=10.0))
    slower = load_report(store.uri, None, None, {}).slower_than_before
    assert [(s.stage, s.change_pct, s.run_id) for s in slower] == [("predict", -50.0, "1-a")]
    assert load_report(store.uri, None, "1-a", {}).slower_than_before is None


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"version": 2}, JobError, "written by a newer version"),
        ({"rows": 7}, InfraError, "not a report: rows"),
        ({"version": "one"}, InfraError, "not a report"),
        (b"[]", InfraError, "not a report"),
        (b"\xff{", InfraError, "not a report"),
    ],
)
def test_a_file_that_is_not_a_report_is_refused(store: Store, data, error, message: str):
    if isinstance(data, dict):
        data = json.dumps(report_of("1-a") | data).encode()
    store.put(Layout(DAY).report("1-a", "report.json"), data)
    with pytest.raises(error, match=message):
        load_report(store.uri, None, None, {})


# Plans


@pytest.fixture
def job(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Job:
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(10):
        Image.new("RGB", (40, 40), (25 * index, 0, 0)).save(folder / f"{index}.png")
    for index in range(7):
        (folder / f"note-{index}.txt").write_text("not an image")
    return Job.model_validate(
        {
            "source": {"uri": str(folder), "format": "images"},
            "model": {"factory": "models:colours", "labels": tuple(LABELS), "batch_size": 2},
            "transform": {k: tuple(v) if isinstance(v, list) else v for k, v in TRANSFORM.items()},
            "sink": {"uri": store.uri, "partition": DAY},
            "run": {"slice_rows": 4},
        }
    )


def plan_of(job: Job):
    layout = Layout(DAY)
    context = RunContext(job, OPTIONS, Store(job.sink.uri), layout, RunRecorder("r", DAY))
    return prepare(context)[0]


def past_report(job: Job) -> dict:
    """The report of a run of the job's model: 1,000 rows in 60 of 80 s."""
    model = plan_of(job).model
    names = ("name", "weights_sha256", "runtime", "precision")
    return document_of(
        BARE["published"],
        run_id="1-a",
        partition=NEXT_DAY,
        wall_s=80.0,
        streaming_wall_s=60.0,
        rows={"total": 1000, "computed": 1000},
        model={**{name: model[name] for name in names}, "batch_size": 2},
    )


def test_a_plan_shows_what_a_run_would_do_and_writes_nothing(job: Job, store: Store):
    plan = planned(job)
    assert not Path(store.uri).exists()
    assert plan["partition"] == DAY
    assert plan["a_run_would"] == "publish the first version"
    assert (plan["slices"], plan["slices_staged"], plan["rows_left"]) == (3, 0, 10)
    source = plan["input"]
    assert (source["shards"], source["rows"], source["unreadable_shards"]) == (10, 10, 0)
    assert source["bytes"] == sum(p.stat().st_size for p in Path(job.source.uri).glob("*.png"))
    assert (plan["skipped"]["files"], plan["skipped"]["extensions"][0]["extension"]) == (
        7,
        ".txt",
    )
    assert plan["model"]["batch_size"] == 2
    assert plan["published_now"] is None
    assert plan["estimate"]["minutes"] is None
    assert "no run of this model over 100 rows or more is on record" in plan["estimate"]["basis"]
    assert json.loads(json.dumps(plan, allow_nan=False)) == plan
    assert "publish the first version" in shown(plan)


def test_a_plan_counts_the_slices_that_are_staged(job: Job, store: Store):
    plan = adopt_plan(store, Layout(DAY), plan_of(job))
    first, _, third = plan.slices()
    put_report(store, NEXT_DAY, "1-a", past_report(job))
    for key in (first, third):
        store.put(f"{Layout(DAY).staging(plan.work)}/{staged_name(key, 'abc')}", b"a part")
    before = snapshot(store, "")
    estimated = planned(job)
    assert estimated["a_run_would"] == "resume, then publish the first version"
    assert (estimated["slices_staged"], estimated["rows_left"]) == (2, 4)
    # 60 s for 1,000 rows, 20 s besides; four rows are left.
    assert estimated["estimate"]["minutes"] == pytest.approx((20 + 4 * 0.06) / 60)
    assert "run 1-a: 1,000 rows" in estimated["estimate"]["basis"]
    assert snapshot(store, "") == before


def test_a_plan_shows_what_would_be_replaced_or_that_all_is_done(job: Job, store: Store):
    base = publish_rows(store)
    preview = planned(job)
    assert preview["a_run_would"] == "replace version 1"
    assert "changed" not in preview, "a version without parts does not tell"
    parts = plan_of(job).fingerprint_parts | {"inputs": "of before"}
    before = dataclasses.replace(base, number=2, fingerprint_parts=parts, token="s")
    commit(store, Layout(DAY), dataclasses.replace(before, parts=(), quarantine_parts=()), "none")
    preview = planned(job)
    assert preview["changed"].startswith("the input (it was "), "its plan is of another folder"
    assert preview["published_now"]["run_id"] == base.run_id
    done = dataclasses.replace(base, number=3, fingerprint=plan_of(job).fingerprint, token="t")
    commit(store, Layout(DAY), dataclasses.replace(done, parts=(), quarantine_parts=()), "none")
    preview = planned(job)
    assert preview["a_run_would"] == "nothing: this is published already"
    assert preview["rows_left"] == 0
    assert preview["estimate"]["minutes"] == 0
    too_large = job.resources.model_copy(update={"num_gpus": 512.0})
    preview = planned(job.model_copy(update={"resources": too_large}))
    assert preview["rows_left"] == 0, "a run would start nothing, so nothing has to fit"


# Rendering


def test_nested_dicts_become_sections_pairs_and_tables():
    text = shown(
        {
            "name": "x",
            "size_bytes": 2048,
            "unknown": None,
            "flag": True,
            "many": [1, 2, 3000],
            "none": [],
            "empty": {},
            "inner": {"rows": 12345, "deep": {"score": 0.123456}},
            "table": [{"label": "cat", "rows": 1}, {"label": None, "more": "yes"}],
        }
    )
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        "size bytes 2.0 KiB",
        "flag yes",
        "many 1, 2, 3,000",
        "inner",
        "rows 12,345",
        "deep",
        "score 0.1235",
        "label rows more",
        "cat 1 -",
        "- - yes",
    ):
        assert line in lines
    assert not any(line.startswith(("unknown", "none", "empty")) for line in lines)


def test_a_document_fits_80_columns_and_has_no_rows_of_dashes(store: Store):
    for day in (DAY, NEXT_DAY):
        publish_rows(store, day)
    document = describe_output(store.uri, None, {})
    document["newest"]["gates"] = [
        {"name": "conservation", "value": None, "message": "25 rows in = 20 + 5", "reason": None},
        {"name": None, "value": None, "message": "", "reason": None},
    ]
    document["estimate"] = {"minutes": None, "cost": None, "per_node": {"rows_per_s": None}}
    lines = shown(document, width=80).splitlines()
    assert max(map(len, map(str.rstrip, lines))) <= 80
    assert [line for line in lines if line.strip() and not line.strip(" -")] == []
    text = "\n".join(" ".join(line.split()) for line in lines)
    assert "partition version run id rows" in text
    assert f"{DAY} 1 " in text
    assert "name value" not in text
    assert "name message" in text
    assert "estimate" not in text


def test_long_values_are_folded_and_never_cut():
    digest = "ab" * 200
    assert "".join(shown({"sha256": digest, "rows": [{"x": digest}]}).split()).count("ab") == 400


def test_the_page_of_inspect_has_the_content_of_the_command(tmp_path: Path):
    store = Store(str(tmp_path / "out"))
    for day in (23, 24):
        publish_rows(store, f"date=2026-11-{day}")
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["inspect", store.url(""), "--html", str(page), "--json"])
    assert done.exit_code == 0, done.output
    text = page.read_text("utf-8")
    first, last = (text.index(f"<td>date=2026-11-{day}</td><td>complete</td>") for day in (23, 24))
    assert last < first
    for words in ("date=2026-11-24, version 1", "made-up", "Least certain"):
        assert words in text
    assert "does not tell how its input was read" in text
    assert "<th>unreadable shards</th><td>0</td>" in text, "what is zero is said, too"
    places = [text.index(words) for words in (">predicted<", "does not tell", "fingerprint")]
    assert places == sorted(places), "what was predicted, pictures, then ids and hashes"
    inspect(store.url(""), html=page, samples=0)
    assert "Least certain" not in page.read_text("utf-8")
