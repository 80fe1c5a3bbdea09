"""Batches of one size are compiled once, whatever the last one of a slice holds."""

from __future__ import annotations

import torch
from support.runs.predicting import images, predict, predictor, rows_of


def num_compiled() -> int:
    counted: dict[str, int] = torch._dynamo.utils.counters["frames"]
    return counted["ok"]


def test_no_slice_is_compiled_again_for_the_rows_that_it_has():
    model = predictor("support.runs.predicting:convolved", batch_size=4, runtime="compile")
    loaded = num_compiled()
    assert loaded, "loading compiles"
    for num_rows in (7, 4, 1, 9, 2):
        predict(model, rows_of(images(num_rows)))
    assert num_compiled() == loaded
