"""Promise: `open_output` reads whole versions by their manifest, on every store."""

from __future__ import annotations

import dataclasses
import gc
import pickle
import re
import shutil
import sys
import weakref
from pathlib import Path

import duckdb
import polars
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from support.runs.published import Rows as Made
from support.runs.published import labels_of, publish_rows, put_report
from support.runs.report_examples import document_of, everywhere

import pipeline
from pipeline.commit.layout import Layout
from pipeline.core.errors import InfraError, JobError
from pipeline.report.document import Report
from pipeline.storage.store import Store

DAYS = [f"date=2026-11-{day}" for day in (22, 23, 24)]
HOSTILE = '<img src=x onerror="alert(1)">'


def opened(store: Store) -> pipeline.Output:
    return pipeline.open_output(store.url(""), storage_options=store.storage_options)


def test_a_version_is_read_whole_and_only_the_columns_asked_for(any_store: Store):
    made = Made(kinds=("a", "b"))
    publish_rows(any_store, DAYS[0], made)
    any_store.put(f"predictions/{DAYS[0]}/stray.parquet", b"no part of it")
    night = opened(any_store)[DAYS[0]]
    rows = night.predictions()
    table = rows.to_table()
    assert table.schema.equals(rows.schema)
    assert (len(rows), table.num_rows) == (20, 20)
    assert sum(1 for _ in rows) == 20
    wanted = [row_id for index in range(4) for row_id in made.ids(index) if row_id[-1] != "4"]
    assert table.column("row_id").to_pylist() == wanted, "in input order"
    dogs = night.predictions(["row_id", "label"], pc.field("label") == "dog")
    assert (
        dogs.to_table().to_pydict()["label"]
        == ["dog"] * labels_of(made)["dog"]
        == ["dog"] * len(dogs)
    )
    assert dogs.head(1).column_names == ["row_id", "label"]
    assert set(night.quarantine(["reason"]).to_table().column(0).to_pylist()) == {"truncated"}
    with pytest.raises(JobError, match="no column 'lable'; there are row_id"):
        night.predictions(["lable"]).to_table()
    for filters in ("score > 0.5", ("score", ">", 0.5), [("score", ">", 0.5)]):
        with pytest.raises(JobError, match=r'is not a pyarrow expression.*field\("score"\) > 0\.5'):
            night.predictions(filter=filters)


def test_files_outlive_their_dataset(tmp_path: Path):
    """A thread of Arrow must not be the last to free a Python object."""
    store = Store(str(tmp_path))
    publish_rows(store, DAYS[0])
    dataset = opened(store).latest.predictions().dataset
    files = weakref.ref(dataset.filesystem.handler.fs)
    del dataset
    gc.collect()
    assert files() is not None


def test_other_libraries_get_the_same_rows(tmp_path: Path):
    store = Store(str(tmp_path))
    publish_rows(store, DAYS[0], Made(kinds=("a", "b"), partition_columns=("kind",)))
    rows = opened(store).latest.predictions(["row_id", "kind"], pc.field("kind") == "b")
    expected = rows.to_table().to_pydict()
    assert set(expected["kind"]) == {"b"}
    assert rows.to_pandas().to_dict("list") == expected
    assert rows.to_polars().to_dict(as_series=False) == expected
    assert rows.to_duckdb().to_arrow_table().to_pydict() == expected
    assert polars.DataFrame(rows).to_dict(as_series=False) == expected
    assert duckdb.sql("from rows").to_arrow_table().to_pydict() == expected
    everything = opened(store).latest.predictions(["kind"]).to_duckdb()
    assert everything.aggregate("count(*)").fetchall() == [(20,)]
    assert pickle.loads(pickle.dumps(rows)).to_table().to_pydict() == expected
    assert rows._read(pa.table({"part": range(len(rows.parts.parts))})).to_pydict() == expected


@pytest.mark.parametrize("library", ["polars", "duckdb"])
def test_a_missing_library_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
):
    store = Store(str(tmp_path))
    publish_rows(store)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(JobError, match=f"^to_{library} needs {library}: pip install {library}$"):
        getattr(opened(store).predictions(), f"to_{library}")()


def test_versions_stay_readable_while_they_are_kept(usual_store: Store):
    for edition in (1, 2, 3):
        publish_rows(usual_store, DAYS[0], Made(edition=edition), keep_versions=1)
        if edition == 2:
            second = opened(usual_store).latest
            rows = second.predictions(["edition"])
    assert set(rows.to_table().column(0).to_pylist()) == {2}, "opened before it was replaced"
    night = opened(usual_store).latest
    assert night.versions == (2, 3)
    assert set(night.version(2).predictions(["edition"]).to_table().column(0).to_pylist()) == {2}
    with pytest.raises(JobError, match="version 1 is not kept; there are 2, 3"):
        night.version(1)
    publish_rows(usual_store, DAYS[0], Made(edition=4), keep_versions=1)
    with pytest.raises((InfraError, OSError), match="is gone, also from the history"):
        second.predictions().to_table()


def test_an_output_has_its_partitions_by_date(usual_store: Store):
    with pytest.raises(JobError, match="nothing is published there"):
        opened(usual_store)
    for number, day in enumerate(DAYS[::-1]):
        publish_rows(usual_store, day, Made(edition=number, fail_every=2 * number))
    out = opened(usual_store)
    assert [*out.partitions] == [partition.name for partition in out] == DAYS
    assert out["2026-11-23"].name == out[DAYS[1]].name == DAYS[1]
    assert out.latest.name == DAYS[2]
    assert out.versions == {day: (1,) for day in DAYS}
    by_day = out.predictions(["date", "edition"]).to_pandas().groupby("date")["edition"].unique()
    assert [by_day[day[5:]].tolist() for day in DAYS] == [[2], [1], [0]]
    last = out.quarantine(["row_id", "date"], pc.field("date") == "2026-11-24")
    assert len(last) == 0
    with pytest.raises(JobError, match="no partition 2026-11-25; the last ones are"):
        out["2026-11-25"]
    assert "3 partitions, date=2026-11-22 to date=2026-11-24; made-up" in repr(out)


def test_the_latest_of_numbered_partitions_has_the_highest_number(tmp_path: Path):
    for name in ("batch=10", "batch=9"):
        publish_rows(Store(str(tmp_path)), name)
    assert [partition.name for partition in pipeline.open_output(tmp_path)] == [
        "batch=9",
        "batch=10",
    ]
    assert pipeline.open_output(tmp_path).latest.name == "batch=10"


def test_the_latest_of_partitions_of_two_kinds_was_published_last(tmp_path: Path):
    """An output of an earlier version of this package may have them."""
    store = Store(str(tmp_path))
    for number, name in enumerate((None, "trial=1", DAYS[0], DAYS[1], None, "region=a")):
        manifest = publish_rows(store, name, Made(edition=number))
        layout = Layout(name)
        later = dataclasses.replace(manifest, created_at=f"2026-11-25T0{number}:00:00+00:00")
        store.put(layout.log_entry(manifest.number), later.to_json())
        out = opened(store)
        assert out.latest.name == layout.name
        assert {shown.layout for shown in out._shown} == {*out.layouts}


def test_the_least_certain_rows_come_first(usual_store: Store, monkeypatch: pytest.MonkeyPatch):
    publish_rows(usual_store, None, Made(num_slices=8))
    rows = opened(usual_store).least_certain(5)
    scores = opened(usual_store).predictions(["score"]).to_pandas()["score"]
    assert rows.column("score").to_pylist() == sorted(scores)[:5]
    assert len(set(rows.column("row_id").to_pylist())) == 5


def test_a_version_has_the_report_of_its_run(usual_store: Store):
    manifest = publish_rows(usual_store, DAYS[0])
    put_report(usual_store, DAYS[0], manifest.run_id, document_of(run_id=manifest.run_id))
    put_report(usual_store, DAYS[0], "99", document_of(run_id="99"))
    assert opened(usual_store).latest.report.run_id == manifest.run_id


def test_html_for_notebooks_is_small_and_escaped(tmp_path: Path):
    store = Store(str(tmp_path))
    for number in range(1, 13):
        publish_rows(store, f"part={number:03d}", Made(num_slices=1))
    layout = Layout("part=012")
    publish_rows(store, "part=012", Made(edition=2))
    night = opened(store)["part=012"]
    labels = {f"{HOSTILE}{number}": number for number in range(1000)}
    gate = {"name": "drift", "status": "warn", "message": HOSTILE * 50}
    manifest = dataclasses.replace(
        night.manifest,
        distribution={"labels": labels},
        gates=(gate,) * 40,
        model={"name": HOSTILE, "task": {"kind": "classify"}},
    )
    store.put(layout.log_entry(manifest.number), manifest.to_json())
    report = Report(**document_of(everywhere(HOSTILE)))
    night = opened(store)["part=012"]
    for shown in (opened(store), night, report, night.predictions()):
        page = shown._repr_html_()
        assert len(page.encode()) < 300_000
        assert "<img" not in page.replace("<img alt", "")
        assert not re.search(r"<script|https?://|\son\w+=\"", page)
        assert repr(shown)
    assert HOSTILE.split()[0][1:] in opened(store)._repr_html_()


def test_html_shown_once_is_shown_again_without_the_store(tmp_path: Path):
    for day in DAYS:
        publish_rows(Store(str(tmp_path / "out")), day)
    out = opened(Store(str(tmp_path / "out")))
    night = out.latest
    before = [shown._repr_html_() for shown in (out, night)] + [repr(out)]
    shutil.rmtree(tmp_path / "out")
    assert [shown._repr_html_() for shown in (out, night)] + [repr(out)] == before
    assert before[0].index(DAYS[2]) < before[0].index(f"<td>{DAYS[0]}"), "the latest first"
