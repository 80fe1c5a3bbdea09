"""Detection through the real command: rows that are retried, and kills."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from models import LABELS, SIZE_PX, spots
from PIL import Image
from support.inputs.badfiles import encode
from support.runs.cli import pipeline, write_job
from support.runs.kills import require_same_after_kills
from support.runs.published_rows import read_predictions

from pipeline.commit.published.verify import verify_output

pytestmark = pytest.mark.slow
DATE = "2026-11-24"
PARTITION = f"date={DATE}"
AT = ("--date", DATE, "--json")
MIN_SCORE = 0.3
SIDE_PX = 2 * SIZE_PX
COLOURS = (
    *((10, 12, 9), (245, 250, 240), (250, 20, 30), (10, 240, 20), (5, 30, 250)),
    *((128, 128, 128), (180, 120, 60)),
)
"""Of the photos; nothing is seen in the grey one."""
DETECTOR = {
    **{"task": "detect", "factory": "models:spots", "labels": LABELS, "min_score": MIN_SCORE}
}
NUM_ROWS = 28
Detections = list[dict[str, Any]]


def photo(row: int) -> bytes:
    """A photo of one colour, of twice the size of the model input."""
    return encode(Image.new("RGB", (SIDE_PX, SIDE_PX), COLOURS[row % len(COLOURS)]), "PNG")


def expected(row: int) -> Detections:
    """What a plain loop finds in a photo, best first, in its pixels."""
    colour = torch.tensor(COLOURS[row % len(COLOURS)]) / 255
    with torch.inference_mode():
        [found] = spots()(colour[None, :, None, None].expand(1, 3, SIZE_PX, SIZE_PX))
    seen = []
    for place in found["scores"].argsort(descending=True, stable=True).tolist():
        corners = (found["boxes"][place] * SIDE_PX / SIZE_PX).tolist()
        if (score := float(found["scores"][place])) >= MIN_SCORE:
            names = ("x_min", "y_min", "x_max", "y_max")
            box = dict(zip(names, corners, strict=True))
            seen.append({"label": LABELS[place], "label_id": place, "score": score, **box})
    return seen


def require_rows(out: Path, rows: Sequence[int]) -> None:
    """Hold what is published to the plain loop, row by row."""
    table = read_predictions(str(out), PARTITION)
    assert table["row_id"].to_pylist() == [f"r{row:02d}" for row in rows]
    for row, found in zip(rows, table["detections"].to_pylist(), strict=True):
        wanted = expected(row)
        assert len(found) == len(wanted)
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4), row
    assert {*table["width_px"].to_pylist()} == {*table["height_px"].to_pylist()} == {SIDE_PX}


def quarantine(out: Path) -> dict[str, str]:
    """Return the reason of each row that is quarantined."""
    tables = [pq.read_table(path) for path in (out / "quarantine" / PARTITION).glob("*.parquet")]
    rows = [row for table in tables for row in table.to_pylist()]
    return {row["row_id"]: row["reason"] for row in rows}


@pytest.mark.no_ray
def test_photos_that_are_mended_bring_their_detections(tmp_path: Path) -> None:
    assert [len(expected(row)) for row in range(len(COLOURS))] == [1, 1, 1, 1, 1, 0, 1]
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    (tmp_path / "in").mkdir()
    names = [f"r{row:02d}" for row in range(NUM_ROWS)]
    pq.write_table(pa.table({"name": names, "link": names}), tmp_path / "in" / "a.parquet")
    for row, name in enumerate(names):
        (photos / name).write_bytes(photo(row))
    (photos / "r05").unlink()  # the grey one: its detections will be an empty list
    (photos / "r11").write_bytes(b"no image")
    (photos / "r17").write_bytes(photo(17)[:60])
    source = {
        **{"uri": str(tmp_path / "in"), "format": "parquet", "id_column": "name"},
        **{"uri_column": "link", "uri_base": str(photos), "uri_roots": [str(photos)]},
    }
    job = write_job(
        tmp_path / "job.yaml", source, str(out), model=DETECTOR,
        run={"slice_rows": 8}, gates={"max_error_pct": 20},
    )  # fmt: skip
    first = pipeline("run", job, *AT)
    assert first.code == 0, first.stderr
    reasons = {"r05": "missing", "r11": "unidentified", "r17": "truncated"}
    assert quarantine(out) == reasons
    require_rows(out, [row for row in range(NUM_ROWS) if names[row] not in reasons])

    for row in (5, 11):
        (photos / names[row]).write_bytes(photo(row))
    done = pipeline("retry", job, *AT)
    assert done.code == 0, done.stderr
    told = {name: done.json["retry"][name] for name in ("entries", "recovered", "failed_again")}
    assert told == {"entries": 3, "recovered": 2, "failed_again": 1}
    rows = done.json["rows"]
    assert (rows["total"], rows["predicted"], rows["computed"]) == (NUM_ROWS, NUM_ROWS - 1, 3)
    assert quarantine(out) == {"r17": "truncated"}
    require_rows(out, [row for row in range(NUM_ROWS) if row != 17])
    assert verify_output(str(out), PARTITION, {})["status"] == "ok"
    again = pipeline("run", job, *AT)
    assert (again.code, again.json["status"]) == (0, "nothing_to_do"), again.stderr


@pytest.mark.no_ray
def test_kills_make_no_difference_to_detections(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for row in range(80):
        (tmp_path / "in" / f"r{row:02d}.png").write_bytes(photo(row))
    source = {"uri": str(tmp_path / "in"), "format": "images"}
    job = write_job(tmp_path / "job.yaml", source, str(tmp_path / "out"), model=DETECTOR)
    require_same_after_kills(job, tmp_path, *AT[:2])
