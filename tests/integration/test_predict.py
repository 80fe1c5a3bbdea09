"""A first prediction needs no job file: it writes one, and runs continue with that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models import LABELS, TRANSFORM
from support.inputs.encoded import base_image, encode
from support.inputs.photos import build_images
from support.runs.cli import pipeline as command

import pipeline

NUM_ROWS, NUM_BAD = 24, 2
SETTINGS = {"model.labels": LABELS, **{f"transform.{name}": v for name, v in TRANSFORM.items()}}
SET = [
    word for name, value in SETTINGS.items() for word in ("--set", f"{name}={json.dumps(value)}")
]


@pytest.mark.no_ray
def test_predict_inspect_run_again_and_change(tmp_path: Path):
    photos, out = tmp_path / "photos", tmp_path / "labels"
    build_images(photos, NUM_ROWS, seed=6, num_bad=NUM_BAD)
    asked = ("predict", str(photos), "--model", "models:colours", "--to", str(out), *SET, "--json")
    first = command(*asked)
    assert first.code == 0, first.stderr
    assert first.json["rows"]["quarantined"] == NUM_BAD
    lines = [line for line in first.stderr.splitlines() if " INFO " in line]
    messages = [line.split(" INFO ")[1] for line in lines]
    messages = [line for line in messages if line.startswith(("input: ", "model: ", "job: "))]
    assert [line.split(":")[0] for line in messages] == ["input", "model", "job"]
    assert f"{NUM_ROWS} files of format images" in messages[0]
    assert messages[2].endswith(f"the next run is `pipeline run {out}/job.yaml`")

    assert command("run", f"{out}/job.yaml", "--json").json["status"] == "nothing_to_do"
    again = command(*asked, "--quiet")
    assert again.json["status"] == "nothing_to_do"
    assert " INFO " not in again.stderr

    night = pipeline.open_output(out).latest
    rows = night.least_certain(3)
    assert [image.problem for image in night.images(rows)] == [None] * 3
    bad = night.images(night.quarantine())
    assert [image.data for image in bad] == [Path(image.uri).read_bytes() for image in bad]

    (photos / "added.png").write_bytes(encode(base_image(3, 40, 40), "PNG"))
    more = command(*asked)
    assert more.json["rows"]["predicted"] == NUM_ROWS - NUM_BAD + 1, more.stderr
    assert more.json["carried"]["looked_at"] or more.json["carried"]["rows"]

    job = out / "job.yaml"
    job.write_text(job.read_text() + "run: {slice_rows: 8}\n")
    other = command(*asked)
    assert other.code == 2
    assert "job.yaml already holds another job" in other.json["error"]
