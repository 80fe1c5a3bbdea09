"""A transform of the user's own, through the real command: crashes, hangs, and failures of all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import own_transforms
import pytest
from models import LABELS
from PIL import Image
from support.runs.cli import Result, pipeline, write_job
from support.runs.published_rows import read_part, read_predictions

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import current_manifest
from pipeline.commit.published.verify import verify_output
from pipeline.storage.store import Store

DATE = "2026-11-24"
PARTITION = f"date={DATE}"
NUM_ROWS = 24
ALLOWED = {"PIPELINE_ALLOW_IMPORT": "models,own_transforms"}
GRAY = (128, 128, 128)
COLOURS = [(200, 20, 20), (20, 200, 20), (20, 20, 200)]
NAMES = dict(zip(COLOURS, ["red", "green", "blue"], strict=True))
DEADLY = {
    5: (own_transforms.CRASH, "native_crash"),
    6: (own_transforms.EXIT, "native_crash"),
    13: (own_transforms.HANG, "timeout"),
    20: ((own_transforms.MEMORY,) * 3, "out_of_memory"),
}
PLAIN = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}


def run(folder: Path, command: str = "run", **sections: Any) -> Result:
    job = write_job(
        folder / "job.yaml",
        {"uri": str(folder / "images"), "format": "images"},
        str(folder / "out"),
        model={"factory": "models:colours", "labels": LABELS, "batch_size": 8},
        **sections,
    )
    options = ["--json"] if command == "run" else []
    return pipeline(command, job, "--date", DATE, *options, env=ALLOWED)


def write_images(folder: Path, deadly: dict[int, Any]) -> dict[str, str]:
    """Images of one colour each; return name -> label of those that must be predicted."""
    (folder / "images").mkdir()
    expected = {}
    for row in range(NUM_ROWS):
        colour = deadly[row][0] if row in deadly else COLOURS[row % len(COLOURS)]
        name = f"{row:02d}.png"
        Image.new("RGB", (40, 50), colour).save(folder / "images" / name)
        if row not in deadly:
            expected[name] = NAMES[colour]
    return expected


def transform(factory: str, **fields: Any) -> dict[str, Any]:
    unset = {"size_px": None, "resize_px": None, "interpolation": None}
    return {**unset, "factory": f"own_transforms:{factory}", **PLAIN, **fields}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("decode_in", ["actors", "tasks"])
def test_images_that_crash_stop_or_starve_the_transform_cost_only_themselves(
    decode_in: str, tmp_path: Path
) -> None:
    expected = write_images(tmp_path, DEADLY)
    result = run(
        tmp_path,
        transform=transform("deadly", size_px=own_transforms.SIZE_PX),
        run={"slice_rows": 8, "row_timeout_s": 10},
        resources={"decode_in": decode_in, "max_actors": 2},
        gates={"max_error_pct": 50},
    )
    assert result.code == 0, result.stderr
    manifest = current_manifest(Store(str(tmp_path / "out")), Layout(PARTITION))
    assert manifest is not None
    [part] = manifest.quarantine_parts
    rows = read_part(Store(str(tmp_path / "out")), part).to_pylist()
    assert {row["row_id"]: row["reason"] for row in rows} == {
        f"{row:02d}.png": reason for row, (_, reason) in DEADLY.items()
    }
    assert {row["stage"] for row in rows} <= {"decode", "transform"}
    found = read_predictions(str(tmp_path / "out"), PARTITION)
    labels = dict(zip(*(found.column(n).to_pylist() for n in ("row_id", "label")), strict=True))
    assert labels == expected
    verify_output(str(tmp_path / "out"), PARTITION, {})


@pytest.mark.no_ray
@pytest.mark.slow
def test_a_transform_that_refuses_every_image_ends_the_run_and_the_plan(tmp_path: Path) -> None:
    write_images(tmp_path, {})
    sections = {"transform": transform("refusing", size_px=own_transforms.SIZE_PX)}
    result = run(tmp_path, **sections, run={"slice_rows": 8})
    words = "transform.factory own_transforms:refusing: KeyError: 'no such lens' (own_transforms.py"
    assert result.code == 2, result.stderr
    assert "rows of the first batches failed alike: decode_error" in result.stderr
    assert words in result.stderr
    planned = run(tmp_path, "plan", **sections)
    assert planned.code == 2
    assert "the first rows of the source fail in the transform" in planned.stderr
    assert words in planned.stderr


@pytest.mark.no_ray
@pytest.mark.slow
def test_plan_says_what_size_the_transform_gives(tmp_path: Path) -> None:
    write_images(tmp_path, {})
    result = run(tmp_path, "plan", transform=transform("composed", size_px=own_transforms.SIZE_PX))
    assert result.code == 0, result.stderr
    told = "own_transforms:composed makes (3, 32, 32) of a generated image of 320 x 240 px"
    assert told in result.stdout
