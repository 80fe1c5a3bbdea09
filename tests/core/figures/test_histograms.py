"""Distributions: sums of slices are those of all rows, and drift is told from chance."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.commit.staging import count_labels
from pipeline.core.figures.histograms import (
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
from pipeline.gates.drift import compare_labels, compare_numbers
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
    assert compare_numbers(restored.numbers["value"], values).psi < 0.001
    assert Distribution.from_dict({}) == Distribution()


@pytest.mark.parametrize("num_labels", [2, 30, 1000, 3000])
@pytest.mark.parametrize("num_rows", [1000, 10_000, 100_000])
def test_partitions_of_the_same_world_are_not_drift(num_labels: int, num_rows: int):
    rng = np.random.default_rng(num_labels)
    weights = rng.dirichlet(np.ones(num_labels))
    names = [f"label-{i}" for i in range(num_labels)]
    partitions = []
    for _ in range(2):
        counts = rng.multinomial(num_rows, weights)
        values = rng.lognormal(size=num_rows)
        labels = {n: int(c) for n, c in zip(names, counts, strict=True) if c}
        partitions.append(Distribution(labels, numbers={"value": of_values(values)}))
    before = Distribution.from_dict(partitions[0].to_dict())
    assert compare_labels(before, partitions[1]).psi < 0.1
    assert compare_numbers(before.numbers["value"], partitions[1].numbers["value"]).psi < 0.1


def test_many_rare_labels_that_move_are_drift():
    names = [f"label-{i:04d}" for i in range(1000)]
    rng = np.random.default_rng(1)
    weights = np.ones(1000) / 1000
    moved = np.where(np.arange(1000) < 500, 1.6, 0.4) / 1000
    before, now = (
        Distribution(dict(zip(names, rng.multinomial(20_000, w).tolist(), strict=True)))
        for w in (weights, moved)
    )
    assert compare_labels(before, now).psi > 0.25


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"a": 900, "b": 100}, {"a": 900, "new": 100}),
        ({"a": 1000}, {"new": 1000}),
        ({"a": 500, "b": 500}, {"a": 1000}),
    ],
)
def test_labels_that_come_or_go_are_drift(before: dict[str, int], now: dict[str, int]):
    assert compare_labels(Distribution(before), Distribution(now)).psi > 0.25


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ([5.0] * 1000, [4.9] * 1000),
        ([5.0] * 1000, [5.1] * 1000),
        ([0.0] * 500 + [10.0] * 500, [0.0] * 500 + [5.0] * 500),
        (np.linspace(0, 1, 1000), np.linspace(0.3, 1.3, 1000)),
        (np.linspace(-1, 1, 1000), np.linspace(-1, 1, 1000) * 3),
    ],
)
def test_numbers_that_move_are_drift(before: object, now: object):
    shift = compare_numbers(of_values(before), of_values(now))
    assert shift.psi > 0.25
    assert (shift.num_before, shift.num_now) == (1000, 1000)
    assert compare_numbers(of_values(before), of_values(before)).psi == 0.0


def test_psi_is_the_textbook_sum():
    before = Numbers(0, 1, {0: 500_000, 10: 300_000, 19: 200_000})
    now = Numbers(0, 1, {0: 400_000, 10: 300_000, 19: 300_000})
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.3, 0.3])
    expected = ((q - p) * np.log(q / p)).sum()
    assert compare_numbers(before, now).psi == pytest.approx(expected, abs=1e-4)


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


def test_another_space_of_embeddings_is_drift():
    rng = np.random.default_rng(2)
    centre = rng.normal(size=64)
    before, same = (of_vectors(centre + rng.normal(size=(2000, 64))) for _ in range(2))
    other = of_vectors(rng.normal(size=64) + rng.normal(size=(2000, 64)))
    for name, numbers in before.numbers.items():
        assert compare_numbers(numbers, same.numbers[name]).psi < 0.1
    moved = [compare_numbers(before.numbers[name], other.numbers[name]) for name in DIRECTIONS]
    assert max(shift.psi for shift in moved) > 0.25


@pytest.mark.parametrize(
    ("values", "constant"),
    [([3.0] * 4, True), ([0.0] * 4, True), ([3.0, 3.1], False), ([1e-9, 2e-9], False)],
)
def test_numbers_are_constant_beside_their_own_size(values: list[float], constant: bool):
    distribution = Distribution(numbers={"value": of_values(values)})
    assert distribution.is_constant(1e-6) == constant
    assert not Distribution().is_constant(1e-6), "nothing was counted"
