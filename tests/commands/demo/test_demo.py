"""The demo as a user starts it: real photos and texts, all jobs, every row accounted for."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from support.models.snapshots import make_snapshot
from support.runs.checkout import ROOT
from support.runs.cli import Result, pipeline

from pipeline.commands.demo.demo import build_demo, demo_job
from pipeline.commands.demo.photos import Built
from pipeline.commands.demo.texts import MODEL, QUERIES
from pipeline.commit.published.read import read_predictions
from pipeline.job.job import Run
from pipeline.job.reading.loader import read_job

pytestmark = pytest.mark.early

ROWS = 40
JOBS = ROOT / "jobs"
NAMES = ("images", "parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the demo goes, with a small model of random weights in the place of MiniLM."""
    out = tmp_path_factory.mktemp("demo") / "out"
    make_snapshot(out / MODEL, "bert", pooling="mean", normalize=True)
    return out


@pytest.fixture(scope="module")
def first(folder: Path) -> Result:
    done = pipeline("demo", str(folder), "--rows", str(ROWS), "--json")
    assert done.code == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, Built]:
    """What the demo builds, built a second time elsewhere."""
    return build_demo(tmp_path_factory.mktemp("again"), ROWS)


def test_every_row_is_predicted_or_quarantined(first: Result, built: tuple[Built, Built]):
    for name, inputs in zip(NAMES, built, strict=True):
        figures = first.json[name]
        assert figures["status"] == "published"
        assert figures["rows"] == inputs.num_rows
        assert figures["predicted"] + figures["quarantined"] == figures["rows"]
        assert figures["rows_per_s"] > 0
    assert sum(first.json[name]["rows"] for name in NAMES) == ROWS


def test_the_quarantine_is_the_bad_rows_each_with_its_reason(
    first: Result, built: tuple[Built, Built]
):
    found = {row["row_id"]: row["reason"] for row in first.json["quarantine"]}
    assert found == {**built[0].bad, **built[1].bad, "missing": "null_input"}
    assert len(first.json["quarantine"]) == len(found) >= 2
    assert all(row["message"] for row in first.json["quarantine"])


def test_texts_are_embedded_and_compared(first: Result, folder: Path):
    figures = first.json["texts"]
    assert (figures["status"], figures["rows"], figures["quarantined"]) == ("published", ROWS, 1)
    table = read_predictions(str(folder / "output" / "texts"))
    assert table.num_rows == ROWS - 1
    shown = first.json["nearest"]
    assert list(shown) == list(QUERIES.values())
    named = {row["row_id"] for rows in shown.values() for row in rows}
    assert named <= set(table["row_id"].to_pylist()) - set(QUERIES)


def test_photos_get_the_labels_of_what_they_show(first: Result, folder: Path):
    seen = 0
    for name in NAMES:
        table = read_predictions(str(folder / "output" / name), columns=["row_id", "label"])
        for row in table.to_pylist():
            if "coffee" in row["row_id"]:
                assert row["label"] in ("espresso", "cup", "coffee mug", "eggnog")
                seen += 1
            if "flower" in row["row_id"]:
                assert row["label"] == "daisy"
                seen += 1
    assert seen >= 4


def test_the_predictions_shown_are_published_ones_of_different_subjects(
    first: Result, folder: Path
):
    published = {
        row["row_id"]: row["label"]
        for name in NAMES
        for row in read_predictions(str(folder / "output" / name)).to_pylist()
    }
    shown = first.json["predictions"]
    assert len(shown) == 6
    assert all(published[row["row_id"]] == row["label"] for row in shown)
    assert len({Path(row["row_id"]).name.partition("-")[0] for row in shown}) == 6
    for report in first.json["reports"]:
        page = Path(report).read_text()
        assert "<h2>Least certain</h2>" in page or "<h2>The first rows</h2>" in page
        assert "data:image/jpeg;base64," in page or "<blockquote>" in page


def test_a_second_demo_has_nothing_to_do_and_still_shows_everything(first: Result, folder: Path):
    again = pipeline("demo", str(folder), "--rows", str(ROWS))
    assert again.code == 0, again.stdout + again.stderr
    assert "nothing to do" in again.stdout
    unwrapped = again.stdout.replace("\n", "")
    for row in first.json["predictions"] + first.json["quarantine"]:
        assert row["row_id"] in unwrapped
    for report in first.json["reports"]:
        assert report in again.stdout


def test_a_folder_with_other_files_is_refused(tmp_path: Path):
    (tmp_path / "input" / "images").mkdir(parents=True)
    (tmp_path / "input" / "images" / "mine.jpg").write_bytes(b"not to be touched")
    done = pipeline("demo", str(tmp_path), "--rows", "20")
    assert (done.code, "mine.jpg" in done.stderr) == (2, True)


@pytest.mark.parametrize("name", [*NAMES, "texts"])
def test_the_demo_runs_the_jobs_of_the_repository(name: str):
    """So that `pipeline run jobs/...` finds the demo's output published already."""
    date = dt.date(2026, 11, 24)
    verb = "embed" if name == "texts" else "classify"
    written = read_job(str(JOBS / f"{verb}_{name}.yaml"), date=date)
    assert demo_job(name, Path("demo-output")).model_copy(update={"run": Run()}) == written
