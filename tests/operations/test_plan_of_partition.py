"""Promise: `plan` shows what a run would do to its partition, and writes nothing."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from models import LABELS, TRANSFORM
from PIL import Image
from rich.console import Console
from support.runs.published import DAY, publish_rows, put_report, snapshot
from support.runs.report_examples import BARE, document_of

import pipeline
from pipeline.commit.layout import Layout, staged_name
from pipeline.commit.plan_store import adopt_plan
from pipeline.commit.publish import commit
from pipeline.job.job import Job
from pipeline.job.source import Source
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


def test_a_plan_names_the_version_of_the_table(job: Job, tmp_path: Path):
    images = pa.table({"image": [path.read_bytes() for path in Path(job.source.uri).glob("*.png")]})
    for mode in ("error", "overwrite"):
        write_deltalake(tmp_path / "table", images, mode=mode)
    source = Source(uri=str(tmp_path / "table"), format="delta")
    planned_input = planned(job.model_copy(update={"source": source}))["input"]
    assert (planned_input["table_version"], planned_input["rows"]) == ("1", 10)


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
