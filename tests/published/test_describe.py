"""Promise: `inspect` shows what is published, and writes nothing."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console
from support.runs.published import DAY, Rows, labels_of, publish_rows, put_report, snapshot
from support.runs.published_rows import read_predictions
from support.runs.report_examples import BARE, document_of
from typer.testing import CliRunner

from pipeline.commands.app import app
from pipeline.core.errors import InfraError, JobError
from pipeline.operations.inspect import inspect
from pipeline.published.describe import _shown_columns, describe_output
from pipeline.published.output import open_output
from pipeline.published.verify import verify_output
from pipeline.report.showing.printed import render_document
from pipeline.storage.store import Store

pytestmark = pytest.mark.usefixtures("without_ray_here")

NEXT_DAY = "date=2026-11-25"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def shown(document: dict, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render_document(document))
    return console.file.getvalue()


def report_of(run_id: str, partition: str = DAY) -> dict:
    return document_of(BARE["published"], run_id=run_id, partition=partition)


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


@pytest.mark.parametrize("file", ["_delta_log/0.json", "metadata/00000-a.metadata.json"])
def test_a_lake_table_is_no_output_and_the_error_says_what_is(file: str, store: Store):
    store.put(file, b"{}")
    hint = f"^{store.uri}: nothing is published there: it is a lake table; give the sink.uri of a"
    for act in (describe_output, verify_output):
        with pytest.raises(JobError, match=hint):
            act(store.uri, None, {})
    with pytest.raises(JobError, match=hint):
        open_output(store.uri)


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
