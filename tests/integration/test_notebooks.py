"""The notebooks run from top to bottom in a kernel of their own, and show what they are for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nbclient import NotebookClient
from support.inputs.passages import passages
from support.inputs.photos import build_images
from support.models.snapshots import make_snapshot
from support.runs.checkout import PYTHONPATH, ROOT
from support.runs.cli import pipeline

EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
NUM_ROWS, NUM_BAD = 24, 2
MODEL = "models/all-MiniLM-L6-v2"


def execute(name: str, environment: dict[str, str]) -> str:
    """Run all cells of a notebook; return all that they show, as text."""
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    client = NotebookClient(
        notebook,
        timeout=240,
        resources={"metadata": {"path": str(EXAMPLES)}},
        store_widget_state=False,
    )
    client.execute(env={**os.environ, "PYTHONPATH": PYTHONPATH, **environment})
    outputs = [each for cell in notebook.cells for each in cell.get("outputs", [])]
    shown = "\n".join(map(_text, outputs))
    assert "<pre></pre>" not in shown, "a result is shown as nothing"
    return shown


def _text(output: Any) -> str:
    if output.output_type == "stream":
        return str(output.text)
    return "".join(output.data.get(kind, "") for kind in ("text/plain", "text/html"))


def over_photos(name: str, folder: Path) -> str:
    build_images(folder / "photos", NUM_ROWS, seed=5, num_bad=NUM_BAD)
    places = {"PIPELINE_PHOTOS": folder / "photos", "PIPELINE_FOLDER": folder / "out"}
    return execute(name, {name: str(place) for name, place in places.items()})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path: Path):
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.slow
def test_a_partition_shows_classes_unsure_photos_and_failures(tmp_path: Path):
    shown = over_photos("a_partition", tmp_path)
    assert f"{NUM_ROWS} rows = {NUM_ROWS - NUM_BAD} predicted + {NUM_BAD} quarantined" in shown
    assert "starting Ray" in shown, "the cell shows how far it is"
    assert shown.count("data:image/jpeg;base64,") == 8
    assert "utilisation_pct" in shown


@pytest.mark.slow
def test_what_failed_is_mended_and_comes_in(tmp_path: Path):
    shown = over_photos("what_failed", tmp_path)
    assert f"{NUM_BAD} failed before, 0 now" in shown
    assert f"{NUM_BAD} are predicted now" in shown
    assert f"{NUM_BAD} added" in shown


@pytest.mark.slow
def test_a_week_is_published_compared_and_proved(tmp_path: Path):
    shown = over_photos("a_week", tmp_path)
    assert "3 partitions, date=2026-11-22 to date=2026-11-24" in shown
    assert "2 added" in shown
    assert "no_input" in shown, "the night before has no photos"


@pytest.mark.slow
def test_two_models_are_compared_row_by_row(tmp_path: Path):
    shown = execute("two_models", {"PIPELINE_FOLDER": str(tmp_path)})
    assert "of 2000 rows in both differ" in shown
    assert "of 2000 as it came" in shown
    assert (tmp_path / "two_models" / "compared.html").stat().st_size < 300_000


@pytest.mark.no_ray
@pytest.mark.slow
def test_the_texts_nearest_to_a_question_are_shown(tmp_path: Path):
    (tmp_path / "input" / "texts").mkdir(parents=True)
    texts = {"id": range(NUM_ROWS), "text": passages(NUM_ROWS)}
    pq.write_table(pa.table(texts), tmp_path / "input" / "texts" / "passages.parquet")
    make_snapshot(tmp_path / MODEL, "bert", pooling="mean", normalize=True)
    places = {"source.uri": "input/texts", "model.path": MODEL, "sink.uri": "output/texts"}
    options = [f"{field}={tmp_path / place}" for field, place in places.items()]
    arguments = [word for option in options for word in ("--set", option)]
    done = pipeline("run", str(ROOT / "jobs" / "embed_texts.yaml"), *arguments, "--json")
    assert done.code == 0, done.stderr
    assert done.json["rows"]["predicted"] == NUM_ROWS
    shown = execute("nearest_texts", {"PIPELINE_FOLDER": str(tmp_path)})
    assert shown.count("unpack a compressed archive") >= 3
