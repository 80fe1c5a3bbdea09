"""Hostile files: none ends the worker, each costs its own row and no other."""

from __future__ import annotations

import numpy as np
import pytest
from support.inputs.badfiles import bad_files, base_image, encode, good_odd_files, mutations
from support.inputs.worker_pixels import in_a_worker

from pipeline.core.failures import Reason

SEED = 7
SLICE_ROWS = 64


def cut(rows: list[bytes]) -> list[list[bytes]]:
    return [rows[start : start + SLICE_ROWS] for start in range(0, len(rows), SLICE_ROWS)]


@pytest.mark.parametrize("num_mutations", [25, pytest.param(500, marks=pytest.mark.slow)])
def test_poison_costs_itself_and_no_worker(num_mutations: int):
    crafted = bad_files(SEED)
    poison = [file.data for file in crafted] + [d for _, d in mutations(SEED, num_mutations)]
    good = [data for _, data in good_odd_files(SEED)]
    good += [encode(base_image(seed), "JPEG") for seed in range(20)]
    # A good file after every poisonous one.
    mixed = [data for i, bad in enumerate(poison) for data in (bad, good[i % len(good)])]
    workers, reasons, pixels = in_a_worker(cut(good) + cut(mixed))
    expected, pixels = np.split(pixels, [len(good)])
    assert len(workers) == 1
    assert len(reasons) == len(good) + len(mixed), "each row has one outcome"
    assert set(reasons[: len(good)]) == {None}
    reasons = reasons[len(good) :]
    assert set(reasons[1::2]) == {None}
    for i, image in enumerate(pixels[1::2]):
        assert np.array_equal(image, expected[i % len(good)])
    found = reasons[0::2]
    assert found[: len(crafted)] == [file.reason.value for file in crafted]
    assert set(found) - {None} <= {reason.value for reason in Reason}
    assert found.count(None) < len(poison) // 2, "most mutations do break a file"
    for reason, image in zip(found, pixels[0::2], strict=True):
        assert reason is None or not image.any()
