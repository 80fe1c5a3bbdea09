"""Promise: the originals of rows are those that the run has read, from every format."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.inputs.encoded import base_image, encode
from support.inputs.tars import Entry, pack
from support.runs.published import publish_rows
from support.runs.reading import plan_job, read_whole

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest
from pipeline.commit.plan_store import adopt_plan
from pipeline.core.errors import InfraError, JobError
from pipeline.published.output import Partition
from pipeline.storage.store import Store

NUM_ROWS = 600
IMAGES = [encode(base_image(seed, 8, 8), "PNG") for seed in range(7)]
IDS = [f"id-{row}" for row in range(NUM_ROWS)]


def image(row: int) -> bytes:
    return IMAGES[row % len(IMAGES)]


def write_images(folder: Path) -> None:
    (folder / "sub").mkdir()
    for row in range(20):
        (folder / "sub" / f"{row:02d}#x.png").write_bytes(image(row))


def write_parquet(folder: Path) -> None:
    for shard in range(2):
        rows = range(shard * 300, shard * 300 + 300)
        columns = {
            "image": [image(row) for row in rows],
            "b64": [base64.b64encode(image(row)).decode() for row in rows],
            "text": [f"text {row}" for row in rows],
            "other": [f"other {row}" for row in rows],
            "name": [IDS[row] for row in rows],
            "uri": [f"../photos/{row % 7}.png" for row in rows],
        }
        pq.write_table(pa.table(columns), folder / f"{shard}.parquet", row_group_size=100)
    photos = folder.parent / "photos"
    photos.mkdir()
    for number, data in enumerate(IMAGES):
        (photos / f"{number}.png").write_bytes(data)


def write_jsonl(folder: Path) -> None:
    for shard in range(2):
        rows = range(shard * 300, shard * 300 + 300)
        lines = [json.dumps({"id": IDS[row], "text": f"text {row}"}) for row in rows]
        (folder / f"{shard}.jsonl").write_text("\n".join(lines))


def write_tars(folder: Path) -> None:
    for shard in range(2):
        files = [Entry(f"a/{row}.png", image(row)) for row in range(shard, 40, 2)]
        (folder / f"{shard}.tar").write_bytes(pack(files))


CASES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "files": (write_images, {"format": "images"}, "image"),
    "parquet": (write_parquet, {}, "image"),
    "ids": (write_parquet, {"id_column": "name"}, "image"),
    "base64": (write_parquet, {"image_column": "b64", "image_encoding": "base64"}, "image"),
    "uris": (
        write_parquet,
        {"uri_column": "uri", "uri_base": "IN", "uri_roots": ["IN/../photos"]},
        "image",
    ),
    "uris and ids": (
        write_parquet,
        {"uri_column": "uri", "uri_base": "IN", "uri_roots": ["IN/../photos"], "id_column": "name"},
        "image",
    ),
    "texts": (write_parquet, {"text_column": "text"}, "_text"),
    "pairs": (write_parquet, {"text_column": "text", "text_pair_column": "other"}, "_text"),
    "jsonl": (write_jsonl, {"format": "jsonl", "text_column": "text"}, "_text"),
    "jsonl ids": (
        write_jsonl,
        {"format": "jsonl", "text_column": "text", "id_column": "id"},
        "_text",
    ),
    "tars": (write_tars, {"format": "webdataset"}, "image"),
}


class Night:
    """A partition over an input that exists; its predictions do not matter."""

    def __init__(self, folder: Path, case: str) -> None:
        write, fields, self.column = CASES[case]
        self.folder = folder / "in"
        self.folder.mkdir()
        write(self.folder)
        fields = json.loads(json.dumps(fields).replace("IN", str(self.folder)))
        self.rows, plan = read_whole(self.folder, 64, **fields)
        reader, _ = plan_job(self.folder, 64, **fields)
        store, layout = Store(str(folder / "out")), Layout("date=2026-11-24")
        manifest = publish_rows(store, layout.partition)
        plan = adopt_plan(store, layout, plan)
        document = replace(manifest, plan=plan.work, source=reader.source.as_published()).to_json()
        self.partition = Partition(store, layout, Manifest.from_json(document, "log"), {})

    def some(self, numbers: Sequence[int]) -> pa.Table:
        return self.rows.select(["row_id", "uri", self.column]).take(pa.array(numbers))


@pytest.mark.parametrize("case", CASES)
def test_originals_are_those_of_the_run_in_the_order_of_the_rows(tmp_path: Path, case: str):
    night = Night(tmp_path, case)
    some = night.some([11, 0, night.rows.num_rows - 1, 3])
    wanted = some.column(night.column).to_pylist()
    if night.column == "image":
        originals = night.partition.images(some)
        assert [original.data for original in originals] == wanted
        assert originals[0].open().size == (8, 8)
        assert "4 originals, 0 of which cannot be read" in repr(originals)
        page = originals._repr_html_()
        assert page.count("data:image/jpeg;base64,") == 4
    else:
        texts = night.partition.texts(some.to_pandas())
        assert [text[0] if case == "pairs" else text for text in texts] == wanted
        with pytest.raises(JobError, match="were predicted from _text"):
            night.partition.images(some)


def test_ids_alone_suffice_if_they_tell_where_rows_lie(tmp_path: Path):
    night = Night(tmp_path, "parquet")
    assert night.partition.images(["1.parquet#5"])[0].data == image(305)
    ids = night.some([0, 1]).to_pandas()["row_id"]
    assert night.partition.images(ids)[1].data == image(1)
    for row_id in ("9.parquet#5", "1.parquet#x"):
        with pytest.raises(JobError, match=f"row {row_id} is not in its input"):
            night.partition.images([row_id])


def test_after_a_retry_the_plan_of_all_rows_tells_where_they_lie(tmp_path: Path):
    night = Night(tmp_path, "parquet")
    manifest = replace(night.partition.manifest, fingerprint="first")
    night.partition = replace(night.partition, manifest=manifest)
    assert night.partition.images(["1.parquet#5"])[0].data == image(305)


def test_a_missing_or_changed_input_is_an_error(tmp_path: Path):
    night = Night(tmp_path, "files")
    some = night.some([0, 1])
    (night.folder / "sub" / "00#x.png").unlink()
    gone, there = night.partition.images(some)
    assert gone.problem == "missing: vanished since it was planned"
    assert there.data == image(1)
    with pytest.raises(JobError, match="vanished since it was planned"):
        gone.open()
    (night.folder / "sub" / "01#x.png").write_bytes(image(0) + b"more")
    with pytest.raises(InfraError, match="changed since it was"):
        night.partition.images(some)


def test_thumbnails_keep_their_limit(tmp_path: Path):
    night = Night(tmp_path, "files")
    noisy = io.BytesIO()
    base_image(1, 60, 50).save(noisy, "PNG")
    originals = night.partition.images(night.some([0] * 40))
    assert len(originals._repr_html_().encode()) < 300_000
    huge = replace(originals[0], data=noisy.getvalue(), max_image_px=1000)
    with pytest.raises(JobError, match="3000"):
        huge.open()
