"""The sum of the distributions of slices is that of all rows, and its size is bounded."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.commit.staging import count_labels
from pipeline.core.histograms import (
    DIRECTIONS,
    MAX_BINS,
    MAX_COUNTED_TARGETS,
    MAX_LABELS,
    NORM,
    Distribution,
    Numbers,
    measure_numbers,
    sum_numbers,
)
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import TaskSpec

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
EMBED = TaskSpec("embed", embedding_dim=3)


def of_values(values: object) -> Numbers:
    table = pa.table({"value": pa.array(values, pa.float32())})
    return measure_numbers(table, ("value",))["value"]


def of_scores(values: object) -> Numbers:
    scores = pa.array(values, pa.float32())
    table = pa.table({"score": scores, "label": pa.nulls(len(scores), pa.string())})
    return measure_numbers(table, ("score",))["score"]


def of_vectors(vectors: object) -> Distribution:
    size = len(np.asarray(vectors)[0])
    column = pa.array(list(np.asarray(vectors)), pa.list_(pa.float32(), size))
    return Distribution(numbers=measure_numbers(pa.table({"embedding": column}), ("embedding",)))


@pytest.mark.parametrize(
    ("task", "columns"),
    [
        (TaskSpec("classify"), ("score",)),
        (TaskSpec("embed"), ("embedding",)),
        (TaskSpec("regress"), ("value",)),
        (TaskSpec("regress", targets=("a", "b")), ("a", "b")),
        (TaskSpec("multilabel"), ("labels",)),
        (TaskSpec("score"), ("score",)),
        (TaskSpec("tokens"), ("entities",)),
        (TaskSpec("generate"), ("num_output_tokens", "mean_logprob", "finish_reason")),
        (TaskSpec("raw"), ()),
    ],
)
def test_each_task_names_what_is_counted(task: TaskSpec, columns: tuple[str, ...]):
    assert make_task(task).measured_columns() == columns


@given(st.lists(st.lists(FLOATS, min_size=1, max_size=20), min_size=1, max_size=6))
def test_the_sum_of_slices_is_the_measure_of_all_rows(slices: list[list[float]]):
    summed: dict[str, Numbers] = {}
    for part in slices:
        # As they travel: through the footer of a part.
        travelled = Numbers.from_dict(json.loads(json.dumps(of_values(part).to_dict())))
        summed = sum_numbers(summed, {"value": travelled})
    everything = [value for part in slices for value in part]
    assert summed["value"] == of_values(everything)
    assert sum(summed["value"].counts.values()) == len(everything)
    assert (summed["value"].lowest, summed["value"].highest) == (min(everything), max(everything))


@given(FLOATS, FLOATS)
def test_bins_keep_the_order_of_numbers_whatever_the_shift(a: float, b: float):
    low, high = sorted((a, b))
    for shift in (0, 3, 7):
        (first,), (second,) = of_values([low]).shifted(shift), of_values([high]).shifted(shift)
        assert first <= second
    assert of_values([-0.0]).counts == of_values([0.0]).counts


def test_of_lists_of_labels_their_length_and_scores_are_counted():
    entries = [[{"label": "a", "score": 0.9}, {"label": "b", "score": 0.52}], [], None]
    list_type = pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32())]))
    table = pa.table({"labels": pa.array(entries, list_type)})
    numbers = measure_numbers(table, ("labels",))
    assert numbers["num_labels"] == of_values([2.0, 0.0])
    assert numbers["score"] == of_scores([0.9, 0.52])
    assert list(measure_numbers(table.slice(1), ("labels",))) == ["num_labels"]


def test_texts_of_counted_columns_are_labels_and_no_numbers():
    table = pa.table({"finish_reason": ["eos", "length", None, "eos"]})
    assert count_labels(table, ("finish_reason",)) == {"eos": 2, "length": 1}
    assert measure_numbers(table, ("finish_reason",)) == {}


def test_scores_without_labels_are_numbers_of_any_size():
    table = pa.table({"score": pa.array([-4.0, 11.0], pa.float32())})
    assert measure_numbers(table, ("score",))["score"] == of_values([-4.0, 11.0])


def test_rows_without_a_prediction_are_not_counted():
    assert sum(of_values([1.0, None, 2.0, None]).counts.values()) == 2
    table = pa.table({"value": pa.nulls(3, pa.float32())})
    assert measure_numbers(table, ("value",)) == {}
    vectors = pa.array([[3.0, 4.0], None, [0.0, 0.0]], pa.list_(pa.float32(), 2))
    numbers = measure_numbers(pa.table({"embedding": vectors}).slice(0, 3), ("embedding",))
    assert sum(numbers[NORM].counts.values()) == 2
    assert (numbers[NORM].lowest, numbers[NORM].highest) == (0.0, 5.0)


def test_scores_have_twenty_bins():
    assert of_scores([0.0, 0.049, 0.05, 0.5, 0.999, 1.0]).counts == {0: 2, 1: 1, 10: 1, 19: 2}


def test_of_many_targets_all_have_a_range_and_some_have_bins():
    names = tuple(f"t{i}" for i in range(MAX_COUNTED_TARGETS + 2))
    table = pa.table({name: pa.array([1.0, 2.0], pa.float32()) for name in names})
    numbers = measure_numbers(table, names)
    assert [bool(numbers[name].counts) for name in names].count(True) == MAX_COUNTED_TARGETS
    assert all(numbers[name].highest == 2.0 for name in names)


def test_what_the_manifest_keeps_is_bounded():
    labels = {f"label-{i}": i + 1 for i in range(3000)}
    values = of_values(np.random.default_rng(0).normal(size=50_000))
    assert len(values.counts) > MAX_BINS
    kept = Distribution(labels=labels, numbers={"value": values}).to_dict()
    restored = Distribution.from_dict(json.loads(json.dumps(kept)))
    assert len(restored.labels) == MAX_LABELS
    assert restored.num_labelled == sum(labels.values())
    assert min(restored.labels.values()) == 2001, "the most frequent are kept"
    assert len(restored.numbers["value"].counts) <= MAX_BINS
    assert sum(restored.numbers["value"].counts.values()) == 50_000
    assert Distribution.from_dict({}) == Distribution()


def test_equal_vectors_are_constant_and_others_are_not():
    rng = np.random.default_rng(0)
    one = rng.normal(size=64)
    assert of_vectors([one] * 5).is_constant(1e-6)
    unit = [v / np.linalg.norm(v) for v in rng.normal(size=(5, 64))]
    assert not of_vectors(unit).is_constant(1e-6), "of one length, but not of one direction"
    assert not of_vectors([one, one * 1.01]).is_constant(1e-6), (
        "of one direction, not of one length"
    )
    assert of_vectors(np.zeros((3, 8))).is_constant(1e-6)
    assert set(of_vectors(unit).numbers) == {NORM, *DIRECTIONS}


def test_lengths_that_are_scaled_to_one_are_one_bin():
    vectors = np.random.default_rng(3).normal(size=(500, 48)).astype(np.float32)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    norms = of_vectors(units).numbers[NORM]
    assert norms.lowest < 1.0 < norms.highest, "which is why they are rounded"
    assert len(norms.counts) == 1


@pytest.mark.parametrize(
    ("values", "constant"),
    [([3.0] * 4, True), ([0.0] * 4, True), ([3.0, 3.1], False), ([1e-9, 2e-9], False)],
)
def test_numbers_are_constant_beside_their_own_size(values: list[float], constant: bool):
    distribution = Distribution(numbers={"value": of_values(values)})
    assert distribution.is_constant(1e-6) == constant
    assert not Distribution().is_constant(1e-6), "nothing was counted"
