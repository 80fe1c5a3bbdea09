"""From a folder to labels without a job file, and on from there with the job that was made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from models import LABELS, TRANSFORM
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression
from support.inputs.encoded import base_image, encode
from support.inputs.photos import build_images
from support.models.snapshots import make_snapshot
from support.runs.cli import pipeline as command

import pipeline

NUM_ROWS, NUM_BAD = 24, 2
SETTINGS = {"model.labels": LABELS, **{f"transform.{name}": v for name, v in TRANSFORM.items()}}
SET = [
    word for name, value in SETTINGS.items() for word in ("--set", f"{name}={json.dumps(value)}")
]


WORDS = ["one cat", "two cats", "a dog", "the dog sat", "mat"]


def write_texts(folder: Path, *, changed: bool) -> None:
    folder.mkdir(exist_ok=True)
    texts = [f"{WORDS[row % 5]} {WORDS[row % 3]}" for row in range(NUM_ROWS + changed)]
    rows = {"id": [*range(len(texts))], "body": texts}
    pq.write_table(pa.table(rows), folder / "rows.parquet")


def write_numbers(folder: Path, *, changed: bool) -> None:
    folder.mkdir(exist_ok=True)
    rows = [f"c{row},{row % 7 / 7},{row % 3}" for row in range(NUM_ROWS + changed)]
    (folder / "rows.csv").write_text("\n".join(["customer_id,fee,age", *rows]))


def make_classifier(folder: Path) -> str:
    make_snapshot(folder, "bert", "sequence", id2label={0: "negative", 1: "positive"})
    return str(folder)


def make_regression(folder: Path) -> str:
    numbers = np.random.default_rng(1).random((40, 2)).astype(np.float32)
    fitted = LogisticRegression().fit(numbers, numbers[:, 0] > numbers[:, 1])
    path = folder.with_suffix(".onnx")
    path.write_bytes(to_onnx(fitted, numbers[:1]).SerializeToString())
    return str(path)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "model"),
    [
        (write_texts, make_classifier),
        (write_numbers, make_regression),
    ],
    ids=["texts", "numbers"],
)
def test_from_an_empty_folder_predict_look_change_and_compare(
    write: Callable[..., None], model: Callable[[Path], str], tmp_path: Path
):
    """Nothing is said but where the input, the model and the output are."""
    rows, out = tmp_path / "rows", str(tmp_path / "out")
    asked = ("predict", str(rows), "--model", model(tmp_path / "model"), "--to", out)
    for changed in (False, True):
        write(rows, changed=changed)
        done = command(*asked)
        assert done.code == 0, done.stderr
        assert f"published; {NUM_ROWS + changed} rows = " in done.stdout
    assert "carried over: " in done.stdout, "which rows were, or why none"
    looked = command("inspect", out, "--json").json
    assert f"{NUM_ROWS + 1}" in json.dumps(looked)
    compared = command("diff", out)
    assert compared.code == 0, compared.stderr
    assert "1 added" in compared.stdout.splitlines()[0]


@pytest.mark.no_ray
def test_predict_look_run_again_and_change(tmp_path: Path):
    photos, out = tmp_path / "photos", tmp_path / "labels"
    build_images(photos, NUM_ROWS, seed=6, num_bad=NUM_BAD)
    asked = ("predict", str(photos), "--model", "models:colours", "--to", str(out), *SET, "--json")
    first = command(*asked)
    assert first.code == 0, first.stderr
    assert first.json["rows"]["quarantined"] == NUM_BAD
    lines = [each for each in first.stderr.splitlines() if " INFO " in each]
    told = [line.split(" INFO ")[1] for line in lines]
    told = [line for line in told if line.startswith(("input: ", "model: ", "job: "))]
    assert [line.split(":")[0] for line in told] == ["input", "model", "job"]
    assert f"{NUM_ROWS} files of format images" in told[0]
    assert told[2].endswith(f"the next run is `pipeline run {out}/job.yaml`")

    assert command("run", f"{out}/job.yaml", "--json").json["status"] == "nothing_to_do"
    assert command(*asked).json["status"] == "nothing_to_do"

    night = pipeline.open_output(out).latest
    rows = night.least_certain(3)
    assert [each.problem for each in night.images(rows)] == [None] * 3
    bad = night.images(night.quarantine())
    assert [each.data for each in bad] == [Path(each.uri).read_bytes() for each in bad]

    (photos / "added.png").write_bytes(encode(base_image(3, 40, 40), "PNG"))
    more = command(*asked)
    assert more.json["rows"]["predicted"] == NUM_ROWS - NUM_BAD + 1, more.stderr
    assert more.json["carried"]["looked_at"] or more.json["carried"]["rows"]

    job = out / "job.yaml"
    job.write_text(job.read_text() + "run: {slice_rows: 8}\n")
    other = command(*asked)
    assert other.code == 2
    assert "another job is there" in other.json["error"]
