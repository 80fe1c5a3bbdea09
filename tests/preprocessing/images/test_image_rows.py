"""Test that each image is decoded and transformed by itself, so that bad rows affect no others."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.inputs.badfiles import (
    MAX_IMAGE_BYTES,
    MAX_IMAGE_PX,
    bad_files,
    base_image,
    encode,
)
from support.runs.selection import examples

from pipeline.core.arrays import images_from_arrow
from pipeline.core.failures import Failure, Reason, failure_columns
from pipeline.core.figures import Counters
from pipeline.preprocessing.images.decode_image import DecodeLimits
from pipeline.preprocessing.images.image_rows import preprocess
from pipeline.preprocessing.images.transform import TransformSpec

LIMITS = DecodeLimits(MAX_IMAGE_BYTES, MAX_IMAGE_PX)
SPEC = TransformSpec(24, 28, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
SIZES = ["width_px", "height_px", "_geometry"]
STRIP = encode(base_image(0, 1, 400), "PNG")
GOOD = [encode(base_image(seed), "JPEG") for seed in range(4)]
BAD = {file.name: file for file in bad_files(7)}
FAILED = Failure(Reason.UNREADABLE_SHARD, "read", "no footer", "f" * 64, 12)

Input = bytes | Failure


def source_rows(inputs: list[Input]) -> pa.Table:
    images = [entry if isinstance(entry, bytes) else None for entry in inputs]
    failures = [None if isinstance(entry, bytes) else entry for entry in inputs]
    return pa.table(
        {
            "row_id": [f"r{index}" for index in range(len(inputs))],
            "n": pa.array(range(len(inputs)), pa.int64()),
            "image": pa.array(images, pa.large_binary()),
            **failure_columns(failures),
        }
    )


def run(inputs: list[Input]) -> tuple[np.ndarray, list[dict[str, Any]], Counters]:
    """Return pixels, the other columns, and the counters."""
    counters: Counters = {}
    rows = source_rows(inputs)
    prepared = preprocess(rows, counters, LIMITS, SPEC)
    assert prepared.column_names == [*rows.column_names, *SIZES]
    other_columns = prepared.drop_columns(["image", *SIZES])
    assert other_columns.schema == rows.drop_columns(["image"]).schema
    pixels = images_from_arrow(prepared.column("image"), SPEC.shape)
    return pixels, other_columns.to_pylist(), counters


@pytest.mark.parametrize("num_threads", [2, 3, 8])
def test_threads_change_nothing_but_the_time(num_threads: int):
    rows = source_rows([*GOOD, b"", b"no image", FAILED, GOOD[0][:200], STRIP])
    one, many = {}, {}
    expected = preprocess(rows, one, LIMITS, SPEC)
    assert preprocess(rows, many, LIMITS, SPEC, num_threads).equals(expected)
    for counters in (one, many):
        for entry in counters.values():
            assert entry.pop("busy_s") > 0
    assert many == one


def alone(data: bytes) -> np.ndarray:
    return run([data])[0][0]


@pytest.fixture(scope="module")
def good_pixels() -> list[np.ndarray]:
    pixels = [alone(data) for data in GOOD]
    assert all(image.any() for image in pixels)
    return pixels


@examples(60)
@given(
    order=st.lists(
        st.sampled_from([*range(len(GOOD)), "strip", "failed", *sorted(BAD)]),
        min_size=1,
        max_size=9,
    )
)
@example(order=["failed", "failed"])
def test_a_bad_row_costs_itself_and_leaves_its_neighbours_alone(
    good_pixels: list[np.ndarray], order: list[int | str]
):
    inputs: list[Input] = []
    for entry in order:
        if isinstance(entry, int):
            inputs.append(GOOD[entry])
        elif entry in ("strip", "failed"):
            inputs.append(STRIP if entry == "strip" else FAILED)
        else:
            inputs.append(BAD[entry].data)
    pixels, rows, counters = run(inputs)
    assert [row["n"] for row in rows] == list(range(len(order)))
    for entry, image, row, data in zip(order, pixels, rows, inputs, strict=True):
        if isinstance(entry, int):
            assert row["error"] is None
            assert np.array_equal(image, good_pixels[entry])
            continue
        assert not image.any()
        wanted = {"strip": Reason.TOO_LARGE, "failed": Reason.UNREADABLE_SHARD}
        assert row["error"] == wanted.get(entry, BAD[entry].reason if entry in BAD else None)
        if isinstance(data, bytes):
            assert row["sha256"] == hashlib.sha256(data).hexdigest()
            assert row["num_bytes"] == len(data)
            assert row["error_stage"] == "decode"
        if data is FAILED:
            kept = failure_columns([FAILED])
            assert {name: row[name] for name in kept} == {n: v[0].as_py() for n, v in kept.items()}
    _check_counters(counters, order, inputs)


def _check_counters(counters: Counters, order: list[int | str], inputs: list[Input]) -> None:
    decode, transform = counters["decode"], counters["transform"]
    for stage in (decode, transform):
        assert stage["rows_in"] == stage["rows_out"] + stage["rows_quarantined"]
        assert stage["busy_s"] >= 0
    assert set(counters) == {"decode", "transform"}
    assert decode["rows_in"] == sum(isinstance(data, bytes) for data in inputs)
    assert decode["bytes_in"] == sum(len(data) for data in inputs if isinstance(data, bytes))
    assert decode["rows_quarantined"] == sum(entry in BAD or entry == "strip" for entry in order)
    assert transform["rows_in"] == decode["rows_out"]
    assert transform["rows_quarantined"] == 0
    assert transform["rows_out"] == sum(isinstance(entry, int) for entry in order)
    assert transform["bytes_in"] == decode["bytes_out"]
    assert transform["bytes_out"] == transform["rows_out"] * 3 * SPEC.size_px**2


def test_rows_in_several_chunks_are_taken_in_order(good_pixels: list[np.ndarray]):
    chunked = pa.concat_tables([source_rows([GOOD[2], FAILED]), source_rows([GOOD[0]])])
    prepared = preprocess(chunked, {}, LIMITS, SPEC)
    pixels = images_from_arrow(prepared.column("image"), SPEC.shape)
    assert np.array_equal(pixels[0], good_pixels[2])
    assert np.array_equal(pixels[2], good_pixels[0])
