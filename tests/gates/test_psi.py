"""Test that the population stability index tells drift from chance."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.histograms import DIRECTIONS, Distribution, Numbers, measure_numbers
from pipeline.gates.drift import compare_labels, compare_numbers

COUNTS = st.dictionaries(st.integers(0, 30), st.integers(1, 500), max_size=20)


def of_values(values: object) -> Numbers:
    table = pa.table({"value": pa.array(values, pa.float32())})
    return measure_numbers(table, ("value",))["value"]


def of_vectors(vectors: np.ndarray) -> Distribution:
    column = pa.array(list(vectors), pa.list_(pa.float32(), vectors.shape[1]))
    return Distribution(numbers=measure_numbers(pa.table({"embedding": column}), ("embedding",)))


@given(COUNTS, COUNTS)
def test_every_row_is_in_a_bin_and_equal_distributions_do_not_differ(
    before: dict[int, int], now: dict[int, int]
):
    old, new = Numbers(0.0, 1.0, before, 0), Numbers(0.0, 1.0, now, 0)
    shift = compare_numbers(old, new)
    assert (shift.num_before, shift.num_now) == (sum(before.values()), sum(now.values()))
    assert shift.psi >= 0.0
    assert compare_numbers(old, old).psi == 0.0


def test_a_label_is_a_bin_of_its_own_from_the_weight_of_one_on():
    """Of 40 rows beside 40 two bins are made, which weigh 20 rows each."""
    before = Distribution({"kept": 40})
    assert compare_labels(before, Distribution({"kept": 20, "new": 20})).most.startswith("'new' ")
    rare = Distribution({"kept": 20, "new": 19, "other": 1})
    assert compare_labels(before, rare).most == ""


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


def test_another_space_of_embeddings_is_drift():
    rng = np.random.default_rng(2)
    centre = rng.normal(size=64)
    before, same = (of_vectors(centre + rng.normal(size=(2000, 64))) for _ in range(2))
    other = of_vectors(rng.normal(size=64) + rng.normal(size=(2000, 64)))
    for name, numbers in before.numbers.items():
        assert compare_numbers(numbers, same.numbers[name]).psi < 0.1
    moved = [compare_numbers(before.numbers[name], other.numbers[name]) for name in DIRECTIONS]
    assert max(shift.psi for shift in moved) > 0.25


def test_numbers_that_a_manifest_keeps_are_those_of_all_rows():
    values = of_values(np.random.default_rng(0).normal(size=50_000))
    kept = Distribution.from_dict(Distribution(numbers={"value": values}).to_dict())
    assert compare_numbers(kept.numbers["value"], values).psi < 0.001
