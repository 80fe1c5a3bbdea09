"""Photos: the same seed gives the same bytes, names tell the truth, bad rows are bad as said."""

from __future__ import annotations

import io
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.commands.demo import photos as demo_photos
from pipeline.commands.demo.photos import build_images, build_parquet, load_bases, photo_rows
from pipeline.core.errors import JobError
from pipeline.core.failures import Reason
from pipeline.preprocessing.images.decode import DecodeLimits, Undecodable, decode_image

NUM_ROWS, NUM_BAD = 40, 6


def files_of(folder: Path) -> dict[str, tuple[bytes, float]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def decode(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def failure_of(data: bytes | None) -> Reason | None:
    """Judge the bytes by Pillow alone: an opinion that does not come from our decoder."""
    if data is None:
        return Reason.NULL_INPUT
    if not data:
        return Reason.EMPTY
    try:
        decode(data)
    except (OSError, SyntaxError):
        return Reason.TRUNCATED
    return None


def test_base_photos_are_colour_images_of_natural_size():
    bases = load_bases()
    assert {"astronaut", "camera", "chelsea", "china", "coffee", "flower", "rocket"} <= set(bases)
    for name, image in bases.items():
        assert image.mode == "RGB", name
        assert min(image.size) >= 300, name
        assert np.asarray(image).std() > 20, name


def test_same_seed_same_photos_and_more_rows_extend_the_sequence():
    few, many = list(photo_rows(12, seed=3)), list(photo_rows(20, seed=3))
    assert many[:12] == few
    assert len({photo.name for photo in many}) == 20
    assert [p.data for p in photo_rows(12, seed=4)] != [p.data for p in few]


def test_every_photo_decodes_to_the_size_and_the_format_that_it_says():
    extensions = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
    kinds = Counter[str]()
    bases = load_bases()
    for photo in photo_rows(150, seed=0):
        image = decode(photo.data)
        assert image.size == (photo.width_px, photo.height_px)
        assert 300 <= max(image.size) <= 700
        assert photo.name.endswith("." + extensions[str(image.format)])
        assert photo.name.partition("-")[0] in bases
        kinds[str(image.format)] += 1
    assert set(kinds) == set(extensions)
    assert kinds["JPEG"] > 0.8 * kinds.total()


def test_images_are_files_of_which_exactly_the_bad_ones_fail_as_said(tmp_path: Path):
    built = build_images(tmp_path, NUM_ROWS, seed=1, num_bad=NUM_BAD)
    written = files_of(tmp_path)
    assert built.num_rows == len(written) == NUM_ROWS
    assert len(built.bad) == NUM_BAD
    assert len({path.split("/")[0] for path in written}) == len(demo_photos.CAMERAS)
    for path, (data, _) in written.items():
        assert failure_of(data) == built.bad.get(path), path


def test_parquet_rows_are_the_photos_of_which_exactly_the_bad_ones_fail_as_said(tmp_path: Path):
    built = build_parquet(tmp_path, NUM_ROWS, 1, num_shards=3, num_bad=NUM_BAD, row_group_rows=8)
    shards = sorted(tmp_path.iterdir())
    assert len(shards) == 3
    assert pq.ParquetFile(shards[0]).metadata.num_row_groups == 2
    rows = [row for shard in shards for row in pq.read_table(shard).to_pylist()]
    assert built.num_rows == len(rows) == NUM_ROWS
    assert [row["id"] for row in rows] == [photo.name for photo in photo_rows(NUM_ROWS, 1)]
    assert set(built.bad.values()) == set(demo_photos._PARQUET_BAD)
    for row in rows:
        assert failure_of(row["image"]) == built.bad.get(row["id"]), row["id"]
        if row["id"] not in built.bad:
            assert decode(row["image"]).size == (row["width"], row["height"])
            assert row["camera"] in demo_photos.CAMERAS


def test_our_decoder_gives_every_spoilt_photo_its_reason():
    limits = DecodeLimits(max_image_bytes=64 * 1024**2, max_image_px=100_000_000)
    for photo in photo_rows(60, seed=2):
        for reason in demo_photos._FILE_BAD:
            with pytest.raises(Undecodable) as caught:
                decode_image(demo_photos._spoil(photo, reason) or b"", limits)
            assert caught.value.reason == reason, photo.name


def test_building_again_changes_neither_bytes_nor_times(tmp_path: Path):
    build_images(tmp_path / "images", 12, seed=5, num_bad=2)
    build_parquet(tmp_path / "parquet", 12, seed=5, num_shards=2, num_bad=2)
    before = files_of(tmp_path)
    build_images(tmp_path / "images", 12, seed=5, num_bad=2)
    build_parquet(tmp_path / "parquet", 12, seed=5, num_shards=2, num_bad=2)
    assert files_of(tmp_path) == before


def test_another_seed_moves_the_modification_times(tmp_path: Path):
    build_parquet(tmp_path, 4, seed=0, num_shards=1, num_bad=0)
    before = (tmp_path / "shard-00000.parquet").stat().st_mtime
    build_parquet(tmp_path, 4, seed=1, num_shards=1, num_bad=0)
    assert (tmp_path / "shard-00000.parquet").stat().st_mtime != before


def test_files_of_another_build_are_refused(tmp_path: Path):
    build_parquet(tmp_path, 8, seed=0, num_shards=4, num_bad=0)
    with pytest.raises(JobError, match=r"shard-00002\.parquet.*empty folder"):
        build_parquet(tmp_path, 8, seed=0, num_shards=2, num_bad=0)


def test_missing_packages_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "skimage", raising=False)
    with pytest.raises(JobError, match=r"batch-inference-pipeline\[demo\]"):
        load_bases()
