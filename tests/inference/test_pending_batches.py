"""The batches of a slice: divided by what the rows have, anew after lack of memory, and timed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.models.tiny_tokenizer import text_settings

from pipeline.core.schema import NUM_TOKENS
from pipeline.inference.slice_results import Batches, Timer
from pipeline.preprocessing.model_input import BatchLimits
from pipeline.preprocessing.texts.text_input import TextInput

LENGTHS = np.array([3, 16, 5, 9, 2, 12, 7], np.int32)
EACH = np.arange(len(LENGTHS))


def taken(left: Batches, limits: BatchLimits) -> list[list[int]]:
    found = []
    while left:
        found.append(left.take(limits).tolist())
    return found


def test_texts_are_divided_by_their_tokens_and_what_is_left_anew_by_smaller_limits(tmp_path: Path):
    seen, inputs = TextInput(text_settings(tmp_path)), {NUM_TOKENS: LENGTHS}
    limits, smaller = BatchLimits(8, 32), BatchLimits(4, 16)
    left = Batches(seen, inputs, EACH, limits)
    first = left.take(limits).tolist()
    rest = taken(left, smaller)
    assert sorted([*first, *(row for rows in rest for row in rows)]) == EACH.tolist()
    assert all(len(rows) * LENGTHS[rows].max() <= 16 for rows in rest)
    others = np.setdiff1d(EACH, first)
    assert rest == [rows.tolist() for rows in seen.batches(inputs, others, smaller)]
    assert not left


def test_the_same_limits_divide_nothing_anew(tmp_path: Path):
    seen, inputs, limits = (
        TextInput(text_settings(tmp_path)),
        {NUM_TOKENS: LENGTHS},
        BatchLimits(2, 1000),
    )
    once = [rows.tolist() for rows in seen.batches(inputs, EACH, limits)]
    assert len(once) == 4
    assert taken(Batches(seen, inputs, EACH, limits), limits) == once
    assert not Batches(seen, inputs, EACH[:0], limits)


def test_seconds_of_batches_add_up():
    timer = Timer()
    timer.add(1.0, 10.0, 0.5)
    timer.add(2.0, 20.0, 0.25)
    assert (timer.transfer_s, timer.predict_s, timer.launch_s) == (3.0, 30.0, pytest.approx(0.75))
