"""Files that nobody would send on purpose: none ends the worker, each costs itself and no other."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pyarrow as pa
from badfiles import (
    MAX_IMAGE_BYTES,
    MAX_IMAGE_PX,
    bad_files,
    base_image,
    encode,
    good_odd_files,
    mutations,
)

from pipeline.decode import DecodeLimits
from pipeline.preprocess import preprocess
from pipeline.schema import Reason, failure_columns, images_from_arrow
from pipeline.transform import TransformSpec

SEED, NUM_MUTATIONS = 7, 500
LIMITS = DecodeLimits(MAX_IMAGE_BYTES, MAX_IMAGE_PX)
SPEC = TransformSpec(24, 28, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
SLICE_ROWS = 64


def preprocess_slice(images: list[bytes]) -> tuple[int, list[str | None], bytes]:
    """In the worker: its process, the reason of each row or None, and the pixels of all."""
    warnings.simplefilter("ignore")
    columns = {"image": pa.array(images, pa.large_binary())}
    rows = pa.table({**columns, **failure_columns([None] * len(images))})
    found = preprocess(rows, {}, LIMITS, SPEC)
    pixels = images_from_arrow(found.column("image"), SPEC.size_px)
    return os.getpid(), found.column("error").to_pylist(), pixels.tobytes()


def in_a_worker(slices: list[list[bytes]]) -> tuple[set[int], list[str | None], np.ndarray]:
    """Preprocess slices in one process of its own; a worker that dies raises."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        found = list(pool.map(preprocess_slice, slices))
    pixels = np.frombuffer(b"".join(data for _, _, data in found), np.uint8)
    reasons = [reason for _, reasons, _ in found for reason in reasons]
    shape = (len(reasons), SPEC.size_px, SPEC.size_px, 3)
    return {pid for pid, _, _ in found}, reasons, pixels.reshape(shape)


def cut(rows: list[bytes]) -> list[list[bytes]]:
    return [rows[start : start + SLICE_ROWS] for start in range(0, len(rows), SLICE_ROWS)]


def test_there_are_as_many_files_of_as_many_kinds_as_were_asked_for():
    files = bad_files(SEED)
    assert len(files) == len({file.name for file in files}) >= 60
    assert len({file.kind for file in files}) >= 25
    made = mutations(SEED, NUM_MUTATIONS)
    assert len({name for name, _ in made}) == NUM_MUTATIONS
    assert made == mutations(SEED, NUM_MUTATIONS)


def test_poison_costs_itself_and_no_worker():
    crafted = bad_files(SEED)
    poison = [file.data for file in crafted] + [d for _, d in mutations(SEED, NUM_MUTATIONS)]
    good = [data for _, data in good_odd_files(SEED)]
    good += [encode(base_image(seed), "JPEG") for seed in range(20)]
    _, none, expected = in_a_worker(cut(good))
    assert set(none) == {None}

    # A good file after every poisonous one.
    mixed = [data for i, bad in enumerate(poison) for data in (bad, good[i % len(good)])]
    workers, reasons, pixels = in_a_worker(cut(mixed))
    assert len(workers) == 1
    assert len(reasons) == len(mixed), "each row has one outcome"
    assert set(reasons[1::2]) == {None}
    for i, image in enumerate(pixels[1::2]):
        assert np.array_equal(image, expected[i % len(good)])
    found = reasons[0::2]
    assert found[: len(crafted)] == [file.reason.value for file in crafted]
    assert set(found) - {None} <= {reason.value for reason in Reason}
    assert found.count(None) < len(poison) // 2, "most mutations do break a file"
    for reason, image in zip(found, pixels[0::2], strict=True):
        assert reason is None or not image.any()
