"""Whole runs over rows of several inputs: checks, golden rows, retry, and work that is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from models import LABELS
from support.inputs import several_rows
from support.inputs.several_rows import INPUTS, PAIR, loop
from support.runs.cli import pipeline
from support.runs.published_rows import read_predictions

PARTITION = "date=2026-11-24"
DATE = ("--date", "2026-11-24")
NUM_ROWS = 24
MODEL = {"factory": "models:several", "labels": LABELS}


def write_job(folder: Path, columns: dict[str, list[Any]], **sections: Any) -> str:
    job = {
        **several_rows.write_rows(folder, columns),
        "model": MODEL,
        "run": {"slice_rows": 8},
        "gates": {"max_error_pct": 30},
        "resources": {"max_actors": 1, "decode_in": "actors"},
    }
    job["source"] = {**job["source"], "inputs": INPUTS}
    for name, values in sections.items():
        job[name] = {**job[name], **values}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return str(path)


def leave_out_text(job: str) -> None:
    """Take out the section of a job that has no text."""
    sections = yaml.safe_load(Path(job).read_text())
    sections.pop("text")
    Path(job).write_text(yaml.safe_dump(sections))


def quarantine(folder: Path) -> dict[str, tuple[str, str]]:
    rows = [
        row
        for path in sorted((folder / "out" / "quarantine" / PARTITION).glob("*.parquet"))
        for row in pq.read_table(path, columns=["row_id", "reason", "message"]).to_pylist()
    ]
    return {row["row_id"]: (row["reason"], row["message"]) for row in rows}


@pytest.mark.no_ray
@pytest.mark.slow
def test_approximate_pixels_are_checked(tmp_path: Path) -> None:
    columns = several_rows.rows_of(NUM_ROWS)
    for values in columns.values():
        values[12:] = values[:12]
    columns["name"] = [f"r{row:03d}" for row in range(NUM_ROWS)]
    columns["caption"][-1] = "another one"
    job = write_job(
        tmp_path, columns, transform={"shrink_on_load": True},
        resources={"decode_in": "tasks"},
    )  # fmt: skip
    done = pipeline("run", job, *DATE, "--json")
    assert done.code == 0, done.stderr
    gates = {gate["name"]: gate for gate in done.json["gates"]}
    agreement = gates["min_agreement_pct"]
    assert (agreement["status"], agreement["value"]) == ("pass", 100.0)
    table = read_predictions(str(tmp_path / "out"), PARTITION).sort_by("row_id")
    assert table["label_id"].to_pylist() == loop("several", columns).argmax(axis=1).tolist()


@pytest.mark.no_ray
@pytest.mark.slow
def test_categories_of_a_file_go_with_photos_that_keep_their_sizes(tmp_path: Path) -> None:
    columns = several_rows.rows_of(NUM_ROWS)
    columns["plan"] = [("pro", "basic", "gold")[row % 3] for row in range(NUM_ROWS)]
    columns["link"] = [*columns["name"]]
    photos, plans = tmp_path / "photos", ["basic", "gold", "pro"]
    photos.mkdir()
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    for row, name in enumerate(columns["name"]):
        (photos / name).write_bytes(several_rows.photo(row, 20 + 9 * (row % 3), 40))
    (photos / "r005").rename(tmp_path / "r005")
    numbers = {
        "features": ["weight", {"column": "plan", "categories": str(tmp_path / "plans.json")}]
    }
    inputs = {"photo": {"uri_column": "link"}, "numbers": numbers}
    unset = {"size_px": None, "resize_px": None, "interpolation": None}
    job = write_job(
        tmp_path, columns,
        source={"inputs": inputs, "uri_roots": [str(photos)], "uri_base": str(photos)},
        model={"factory": "models:weighed", "labels": None, "task": "embed", "embedding_dim": 7},
        transform={**several_rows.OWN_SIZES, **unset},
    )  # fmt: skip
    leave_out_text(job)
    done = pipeline("run", job, *DATE, "--json")
    assert done.code == 0, done.stderr
    [(name, (reason, message))] = quarantine(tmp_path).items()
    assert (name, reason) == ("r005", "missing")
    assert message.startswith("input 'photo': ")
    again = pipeline("run", job, *DATE, "--json")
    assert (again.code, again.json["status"]) == (0, "nothing_to_do")

    (tmp_path / "r005").rename(photos / "r005")
    retried = pipeline("retry", job, *DATE, "--json")
    assert retried.code == 0, retried.stderr
    table = read_predictions(str(tmp_path / "out"), PARTITION).sort_by("row_id")
    assert table["row_id"].to_pylist() == columns["name"]
    for row, found in enumerate(table["embedding"].to_pylist()):
        data = (photos / columns["name"][row]).read_bytes()
        means = several_rows.pixels(data).mean(dim=(0, 2, 3)).tolist()
        is_plan = [float(plan == columns["plan"][row]) for plan in plans]
        np.testing.assert_allclose(found, [*means, columns["weight"][row], *is_plan], atol=1e-5)
    checked = pipeline("verify", str(tmp_path / "out"), "--partition", PARTITION, "--json")
    assert checked.code == 0, checked.stderr


@pytest.mark.one_ray
@pytest.mark.slow
def test_auto_measures_a_model_of_two_photos(tmp_path: Path) -> None:
    columns = several_rows.rows_of(NUM_ROWS)
    model = {"factory": "models:pair", "labels": None, "task": "embed", "embedding_dim": 7}
    sections = {"model": {**model, "runtime": "auto", "precision": "auto"}}
    job = write_job(tmp_path, columns, source={"inputs": PAIR}, **sections)
    leave_out_text(job)
    done = pipeline("run", job, *DATE, "--json")
    assert done.code == 0, done.stderr
    table = read_predictions(str(tmp_path / "out"), PARTITION).sort_by("row_id")
    np.testing.assert_allclose(
        np.array(table["embedding"].to_pylist()), loop("pair", columns), atol=0.05
    )
