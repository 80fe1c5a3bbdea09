"""Test the batches of a slice, and the table of its results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.models.tiny_tokenizer import text_settings
from support.runs.plan_examples import SPEC

from pipeline.core.failures import Failure, Reason, failure_columns, failures_of
from pipeline.core.schema import NUM_TOKENS, ROW_ID, URI, staged_schema
from pipeline.inference.result_table import scatter_batch, to_table, unpredicted
from pipeline.inference.slice_run import Batches, Timer
from pipeline.models.spec import PredictorConfig
from pipeline.models.tasks import make_task
from pipeline.preprocessing.model_input import BatchLimits
from pipeline.preprocessing.texts.text_input import TextInput

LENGTHS = np.array([3, 16, 5, 9, 2, 12, 7], np.int32)
ALL_ROWS = np.arange(len(LENGTHS))


@given(st.data(), st.sampled_from([(), (3,)]))
def test_every_row_has_its_values_and_zeros_behind_them(data: st.DataObject, inner: tuple[int]):
    size = data.draw(st.integers(1, 12))
    order = np.array(data.draw(st.permutations(range(size))))
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, size - 1)), max_size=4)))
    results: dict[str, np.ndarray] = {}
    expected: dict[int, np.ndarray] = {}
    for batch in np.split(order, [cut for cut in cuts if cut < size]):
        width = data.draw(st.integers(0, 6))
        values = np.arange(1.0, 1 + len(batch) * width * int(np.prod(inner)), dtype=np.float32)
        values = values.reshape(len(batch), width, *inner)
        scatter_batch(results, "a", size, batch, values)
        expected |= dict(zip(batch.tolist(), values, strict=True))
    scattered = results["a"]
    assert scattered.shape[1] == max(len(values) for values in expected.values())
    for row, values in expected.items():
        np.testing.assert_array_equal(scattered[row, : len(values)], values)
        assert not scattered[row, len(values) :].any()


def test_a_row_that_is_written_again_keeps_nothing_of_a_longer_result():
    results: dict[str, np.ndarray] = {}
    scatter_batch(results, "a", 2, np.array([0, 1]), np.full((2, 5), 7))
    scatter_batch(results, "a", 2, np.array([0]), np.full((1, 2), 9))
    assert results["a"].tolist() == [[9, 9, 0, 0, 0], [7, 7, 7, 7, 7]]


def test_what_a_model_made_of_padding_is_zero():
    results: dict[str, np.ndarray] = {}
    values = np.full((2, 3), np.nan, np.float32)
    values[0, :1], values[1, :3] = 1.0, 2.0
    scatter_batch(results, "a", 2, np.array([1, 0]), values, np.array([1, 3]))
    assert results["a"].tolist() == [[2.0, 2.0, 2.0], [1.0, 0.0, 0.0]]
    scatter_batch(results, "a", 2, np.array([0]), np.full((1, 2), 5.0), np.array([1]))
    assert results["a"].tolist() == [[5.0, 0.0, 0.0], [1.0, 0.0, 0.0]]


def taken(left: Batches, limits: BatchLimits) -> list[list[int]]:
    tables = []
    while left:
        tables.append(left.take(limits).tolist())
    return tables


def test_texts_are_divided_by_their_tokens_and_what_is_left_anew_by_smaller_limits(tmp_path: Path):
    seen, inputs = TextInput(text_settings(tmp_path)), {NUM_TOKENS: LENGTHS}
    limits, smaller = BatchLimits(8, 32), BatchLimits(4, 16)
    left = Batches(seen, inputs, ALL_ROWS, limits)
    first = left.take(limits).tolist()
    rest = taken(left, smaller)
    assert sorted([*first, *(row for rows in rest for row in rows)]) == ALL_ROWS.tolist()
    assert all(len(rows) * LENGTHS[rows].max() <= 16 for rows in rest)
    others = np.setdiff1d(ALL_ROWS, first)
    assert rest == [rows.tolist() for rows in seen.batches(inputs, others, smaller)]
    assert not left


def test_the_same_limits_divide_nothing_anew(tmp_path: Path):
    seen, inputs, limits = (
        TextInput(text_settings(tmp_path)),
        {NUM_TOKENS: LENGTHS},
        BatchLimits(2, 1000),
    )
    once = [rows.tolist() for rows in seen.batches(inputs, ALL_ROWS, limits)]
    assert len(once) == 4
    assert taken(Batches(seen, inputs, ALL_ROWS, limits), limits) == once
    assert not Batches(seen, inputs, ALL_ROWS[:0], limits)


def test_seconds_of_batches_add_up():
    timer = Timer()
    timer.add(1.0, 10.0, 0.5)
    timer.add(2.0, 20.0, 0.25)
    assert (timer.transfer_s, timer.predict_s, timer.launch_s) == (3.0, 30.0, pytest.approx(0.75))


def test_a_row_without_a_prediction_and_without_a_failure_makes_no_table():
    ids, failures = ["a", "b", "c"], [Failure(Reason.EMPTY, "decode", "no bytes"), None, None]
    rows = pa.table({ROW_ID: ids, URI: ids, **failure_columns(failures)})
    done = np.array([False, True, False])
    with pytest.raises(RuntimeError, match=r"lost 1 of 3 rows .* the first of them c"):
        to_table(make_task(SPEC.task), pa.schema([]), rows, {}, done, failures)


def test_a_slice_of_failed_rows_has_the_columns_of_predictions_and_its_failures():
    failures = [Failure(Reason.EMPTY, "decode", "no bytes"), Failure(Reason.NULL_INPUT, "read", "")]
    ids, passed = ["a", "b"], pa.schema([("camera", pa.string())])
    rows = pa.table({ROW_ID: ids, URI: ids, "camera": ["front", None], **failure_columns(failures)})
    made = unpredicted(PredictorConfig(SPEC, 4, 0, 1, passed), rows)
    assert made.schema == staged_schema(list(passed), SPEC.output_fields())
    copied = [ROW_ID, URI, "camera"]
    assert made.select(copied).to_pylist() == rows.select(copied).to_pylist()
    assert failures_of(made) == failures
    assert all(made[field.name].null_count == 2 for field in SPEC.output_fields())
