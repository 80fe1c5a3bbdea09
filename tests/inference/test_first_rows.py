"""Test that one cause of failure of all first rows ends a run, unless the rows may be at fault."""

from __future__ import annotations

import pickle
from itertools import product
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from support.runs.predicting import (
    BAD,
    BLACK,
    WHITE,
    images,
    is_predicted,
    predict,
    predictor,
    rows_of,
)
from support.runs.selection import quick_cases

from pipeline.core.failures import Failure, Reason, SystematicFailure
from pipeline.inference.engines.torch_engine import TorchEngine
from pipeline.inference.first_rows import RaisedFailure, SystematicFailureDetector
from pipeline.models.outputs import OutputError, OutputSpec
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import TaskSpec

ENOUGH = 64


def watched(
    factory: str, first: SystematicFailureDetector, batch_size: int = 32, **model: object
) -> TorchEngine:
    made = predictor(factory, batch_size, **model)
    made._first = first
    return made


def test_outputs_of_another_shape_end_the_run_after_the_first_batch():
    model = watched("failing_models:wrong", SystematicFailureDetector(10_000))
    with pytest.raises(SystematicFailure) as raised:
        predict(model, rows_of(images(500)))
    assert str(raised.value) == (
        "all 32 rows of the first batches failed alike: model_error "
        '"output is (1, 6), expected (1, 5): the model has 6 outputs, model.labels 5"; '
        "nothing was published"
    )
    assert (raised.value.failed.num_rows, raised.value.failed.row_id) == (32, "r0")


def test_an_exception_ends_the_run_once_enough_rows_failed_and_names_the_users_line():
    model = watched("failing_models:raising", SystematicFailureDetector(10_000))
    with pytest.raises(
        SystematicFailure, match=r'"RuntimeError: mat1 .*" \(failing_models.py line \d+'
    ):
        predict(model, rows_of(images(500)))
    model = watched("failing_models:raising", SystematicFailureDetector(10_000))
    rows, _ = predict(model, rows_of(images(ENOUGH - 1)))
    assert {row["error"] for row in rows} == {"model_error"}
    with pytest.raises(SystematicFailure, match=f"all {ENOUGH} rows"):
        predict(model, rows_of(images(1)))


@pytest.mark.parametrize("num_rows", [2, 24, ENOUGH])
def test_of_a_small_run_all_rows_are_enough(num_rows: int):
    with pytest.raises(SystematicFailure, match=f"all {num_rows} rows"):
        predict(
            watched("failing_models:raising", SystematicFailureDetector(num_rows)),
            rows_of(images(num_rows)),
        )


@pytest.mark.parametrize(
    ("good_at", "batch_size"),
    quick_cases(
        product([0, ENOUGH - 1], [1, 4, 32, 64]),
        lambda *case: case in ((0, 32), (ENOUGH - 1, 64)),
    ),
)
def test_one_row_with_a_prediction_ends_the_watch(batch_size: int, good_at: int):
    pixels = images(3 * ENOUGH)
    pixels[:] = BLACK
    pixels[good_at] = 128
    rows, _ = predict(
        watched("models:fussy", SystematicFailureDetector(None), batch_size), rows_of(pixels)
    )
    assert [is_predicted(row) for row in rows] == [n == good_at for n in range(3 * ENOUGH)]


def test_a_row_with_another_cause_ends_the_watch():
    pixels = images(2 * ENOUGH)
    pixels[:] = BLACK
    pixels[3] = WHITE  # not finite, but the model did run
    rows, _ = predict(watched("models:fussy", SystematicFailureDetector(None)), rows_of(pixels))
    assert {row["error"] for row in rows} == {"model_error", "non_finite"}


def test_rows_that_never_reach_the_model_say_nothing_of_it():
    first = SystematicFailureDetector(None)
    rows, _ = predict(watched("models:colours", first), rows_of(images(100), [BAD] * 100))
    assert not any(is_predicted(row) for row in rows)
    rows, _ = predict(watched("models:colours", first), rows_of(images(100)))
    assert all(is_predicted(row) for row in rows)


@pytest.mark.parametrize(
    ("factory", "num_run_rows", "num_rows", "errors"),
    [
        ("failing_models:raising", 1, 1, {"model_error"}),  # the row may be at fault
        ("failing_models:wrong", 1, 1, {"model_error"}),
        ("failing_models:starved", 100, 100, {"out_of_memory"}),
        ("models:hungry", 100, 100, {None}),  # splitting cures it
        ("failing_models:ragged", None, 100, {"model_error"}),  # the shape depends on the row
    ],
)
def test_what_may_be_the_rows_fault_costs_rows_alone(
    factory: str, num_run_rows: int | None, num_rows: int, errors: set[str | None]
):
    model = watched(factory, SystematicFailureDetector(num_run_rows))
    rows, _ = predict(model, rows_of(images(num_rows)))
    assert {row["error"] for row in rows} == errors
    assert {is_predicted(row) for row in rows} == {errors == {None}}


def test_predictions_of_an_earlier_run_clear_exceptions_but_no_outputs():
    first = SystematicFailureDetector(None, has_predictions=True)
    rows, _ = predict(watched("failing_models:raising", first), rows_of(images(2 * ENOUGH)))
    assert {row["error"] for row in rows} == {"model_error"}
    first = SystematicFailureDetector(None, has_predictions=True)
    with pytest.raises(SystematicFailure):
        predict(watched("failing_models:wrong", first), rows_of(images(2 * ENOUGH)))


def test_predictions_of_another_actor_of_the_node_clear_exceptions(tmp_path: Path):
    fine, failing = SystematicFailureDetector(None), SystematicFailureDetector(None)
    for first in (fine, failing):
        first.share(tmp_path)
    predict(watched("models:colours", fine), rows_of(images(1)))
    rows, _ = predict(watched("failing_models:raising", failing), rows_of(images(2 * ENOUGH)))
    assert {row["error"] for row in rows} == {"model_error"}


def test_a_list_of_dicts_is_named_as_what_detectors_give():
    outputs = tuple(OutputSpec(name, (4,)) for name in ("boxes", "scores", "labels"))
    with pytest.raises(OutputError, match=r"one dict per row, as detectors do; model\."):
        make_task(TaskSpec("raw", outputs=outputs)).reduce([{"boxes": torch.zeros(2, 4)}] * 3, 3)
    with pytest.raises(OutputError, match=r"the model has 1 outputs, model\.outputs declares 3"):
        make_task(TaskSpec("raw", outputs=outputs)).reduce(torch.zeros(3, 4), 3)


def test_the_watch_goes_to_actors_by_pickling():
    first = pickle.loads(pickle.dumps(SystematicFailureDetector(7)))
    for _ in range(7):
        first.failed("a", RaisedFailure(Reason.MODEL_ERROR, "predict", "RuntimeError: boom"))
    with pytest.raises(SystematicFailure, match="all 7 rows"):
        first.check()
    plain = SystematicFailureDetector(7)
    for _ in range(7):
        plain.failed("a", Failure(Reason.NON_FINITE, "predict", "output is not finite"))
    plain.check()


OF_TRANSFORM = Failure(
    Reason.DECODE_ERROR, "transform", "transform.factory own:make: KeyError: 'a' (own.py 3)"
)


def untransformed(failures: list[Failure | None]) -> pa.Table:
    return rows_of(images(len(failures)), failures)


def test_files_that_all_are_denied_end_the_run():
    denied = Failure(Reason.ACCESS_DENIED, "read", "access denied: allow list, read there")
    with pytest.raises(SystematicFailure, match=f"all {ENOUGH} rows .*: access_denied"):
        SystematicFailureDetector(None).prepared(untransformed([denied] * ENOUGH))
    first = SystematicFailureDetector(None)
    first.prepared(untransformed([*[denied] * (ENOUGH - 1), BAD, None]))
    first.predicted()
    first.prepared(untransformed([denied] * ENOUGH))


def test_rows_that_all_fail_in_the_users_transform_end_the_run():
    first = SystematicFailureDetector(10_000)
    first.prepared(untransformed([OF_TRANSFORM, BAD] * (ENOUGH // 2 - 1)))
    with pytest.raises(SystematicFailure) as raised:
        first.prepared(untransformed([OF_TRANSFORM] * ENOUGH))
    assert raised.value.failed.num_rows == ENOUGH + ENOUGH // 2 - 1
    assert "decode_error \"transform.factory own:make: KeyError: 'a'" in str(raised.value)
    for number in (2, 24):
        with pytest.raises(SystematicFailure, match=f"all {number} rows"):
            SystematicFailureDetector(number).prepared(untransformed([OF_TRANSFORM] * number))
    SystematicFailureDetector(1).prepared(untransformed([OF_TRANSFORM]))


def test_a_row_that_gets_past_the_users_transform_leaves_the_watch_to_the_model():
    first = SystematicFailureDetector(None)
    for _ in range(3):
        first.prepared(untransformed([*[OF_TRANSFORM] * ENOUGH, None]))
    first.prepared(untransformed([BAD] * ENOUGH))
    other = Failure(Reason.DECODE_ERROR, "transform", "transform.factory own:make: OSError: b")
    first.prepared(untransformed([OF_TRANSFORM, other] * ENOUGH))
    first.prepared(untransformed([OF_TRANSFORM] * ENOUGH))
    over = SystematicFailureDetector(None)
    over.predicted()
    over.prepared(untransformed([OF_TRANSFORM] * ENOUGH))
