"""Promise: sheets show the least certain rows; a hostile input costs at most its own picture."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deadly_stages import DeadlyFinder
from support.inputs.encoded import base_image, encode, png_strip
from support.runs.published import Rows, publish_rows
from support.runs.sampled import publish_over

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Part
from pipeline.core.schema import DETECTIONS, ENTITIES, LABEL, SCORE
from pipeline.preprocessing.images.thumbnails import Thumbnail
from pipeline.published import sheets
from pipeline.published.dataset import PublishedPart, PublishedParts
from pipeline.published.originals import OriginalFinder
from pipeline.published.sheets import _read_small, least_certain, try_sheet
from pipeline.report.showing.samples import Small, sheet_html
from pipeline.reuse.version_rows import PartPlace
from pipeline.storage.store import Store

ROWS = Rows(num_slices=2)
PHOTO = encode(base_image(3, 400, 300), "JPEG")
NAMES = ("cat", "dog", "fox", "owl")


def image(row: int) -> bytes:
    return {1: b"no image", 2: png_strip(12_000, 12_000), 4: PHOTO[:900]}.get(row, PHOTO)


@pytest.fixture
def photos(tmp_path: Path) -> OriginalFinder:
    return publish_over(tmp_path, ROWS, image)


def test_a_sheet_has_the_pictures_that_can_be_decoded(photos: OriginalFinder):
    html = try_sheet(photos, 6)
    titles = re.findall("<h2>([^<]*)</h2>", html)
    assert titles == ["Least certain"]
    assert html.count("data:image/jpeg;base64,") == 6 - 2
    for words in ("the bytes begin with 6e 6f", "12000 x 12000"):
        assert words in html
    assert len(html) < 24 * 12_000


@pytest.mark.slow
def test_a_row_that_ends_the_process_costs_only_its_own_picture(photos: OriginalFinder):
    deadly = DeadlyFinder(photos.store, photos.layout, photos.manifest, {})
    rows = [(f"shard-0.parquet#{row}", f"in/shard-0.parquet#{row}") for row in (0, 3, 5)]
    small = _read_small(deadly, rows)
    assert small[rows[1][0]] == Small(problem="its process was ended by SIGSEGV")
    assert [small[row_id].picture is not None for row_id, _ in rows] == [True, False, True]


def test_a_missing_input_costs_only_the_pictures(
    photos: OriginalFinder, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    for shard in (tmp_path / "in").iterdir():
        shard.unlink()
    html = try_sheet(photos, 6)
    assert "img" not in html
    assert "cat 0.5" in html
    part = tmp_path / "out" / photos.manifest.parts[0].path
    part.unlink()
    assert "no sheet of rows: " in try_sheet(photos, 6)
    assert "is gone" in caplog.text


def test_nothing_is_read_without_samples(photos: OriginalFinder):
    gone = replace(photos, manifest=replace(photos.manifest, parts=()), layout=None)  # type: ignore[arg-type]
    assert try_sheet(gone, 0) == ""


def test_boxes_and_entities_lie_where_the_prediction_has_them():
    box = {"label": "cat", "score": 0.9, "x_min": 10.0, "y_min": 20.0, "x_max": 60.0, "y_max": 30.5}
    seen = {"a": Small(Thumbnail(PHOTO, 400, 300))}
    html = sheet_html("Boxes", [{"row_id": "a", DETECTIONS: [box]}], seen)
    assert '<rect class="box" x="10.0" y="20.0" width="50.0" height="10.5">' in html
    assert "<b>cat 0.9</b>" in html
    text = "x" * 300 + " Ada Lovelace met <i>Babbage</i>.\x1b[2J"
    marks = [
        {"start": 301, "end": 313, "text": "", "label": "PER", "score": 0.8},
        {"start": 305, "end": 313, "text": "", "label": "LOC", "score": 0.2},
        {"start": 321, "end": 328, "text": "", "label": "<PER>", "score": 0.9},
    ]
    html = sheet_html("Texts", [{"row_id": "b", ENTITIES: marks}], {"b": Small(texts=(text,))})
    assert re.findall("<mark>([^<]*) <small>([^<]*)</small>", html) == [
        ("Ada Lovelace", "PER"),
        ("Babbage", "&lt;PER&gt;"),
    ]
    assert "\u2026x" in html
    assert "<i>" not in html
    assert "\x1b" not in html


def entries(rng: np.random.Generator, number: int) -> list[dict[str, Any]]:
    return [
        {LABEL: NAMES[rng.integers(4)], SCORE: float(np.float32(rng.random()))}
        for _ in range(number)
    ]


@pytest.mark.parametrize("column", [DETECTIONS, ENTITIES, SCORE])
@pytest.mark.parametrize("part_rows", [7, 1000])
def test_the_least_certain_rows_of_parts_are_those_of_all_rows(
    column: str, part_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sheets, "_BATCH_ROWS", 5)
    rng = np.random.default_rng(5)
    if column == SCORE:
        rows = [entries(rng, 1) if rng.random() < 0.9 else [] for _ in range(300)]
        flat = [row[0] if row else {LABEL: None, SCORE: None} for row in rows]
        table = pa.Table.from_pylist(
            flat, schema=pa.schema([(LABEL, pa.string()), (SCORE, pa.float32())])
        )
    else:
        rows = [entries(rng, int(rng.integers(4))) for _ in range(300)]
        of_list = pa.list_(pa.struct([(LABEL, pa.string()), (SCORE, pa.float32())]))
        table = pa.table({column: pa.array([row or None for row in rows], of_list)})
    table = table.append_column("number", pa.array(range(300)))
    least, looked_at = least_certain(parts_of(tmp_path, table, part_rows), column, 9, ["number"])
    judge = min if column == ENTITIES else max
    certain = [
        (judge(entry[SCORE] for entry in row), number) for number, row in enumerate(rows) if row
    ]
    assert least.column("number").to_pylist() == [number for _, number in sorted(certain)[:9]]
    assert looked_at == 300


def parts_of(folder: Path, table: pa.Table, part_rows: int) -> PublishedParts:
    store, parts = Store(str(folder)), []
    for start in range(0, table.num_rows, part_rows):
        piece, path = table.slice(start, part_rows), f"part-{start}.parquet"
        pq.write_table(piece, folder / path)
        part = Part(path, piece.num_rows, (folder / path).stat().st_size, "")
        parts.append(PublishedPart(PartPlace(part, path), {}))
    return PublishedParts(store, "predictions", tuple(parts))


def test_labels_from_folders_are_those_of_the_rows(tmp_path: Path):
    store, layout = Store(str(tmp_path)), Layout("date=2026-11-24")
    manifest = publish_rows(store, layout.partition, Rows(partition_columns=("label",)))
    parts = PublishedParts.of(store, [(layout, manifest)], "predictions")
    rows, _ = least_certain(parts, SCORE, 24)
    assert rows.num_rows == manifest.num_predicted
    labels = {row["row_id"]: row["label"] for row in parts.dataset().to_table().to_pylist()}
    assert {row["row_id"]: row["label"] for row in rows.to_pylist()} == labels
