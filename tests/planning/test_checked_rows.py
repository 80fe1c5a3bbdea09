"""Carried rows that are predicted again are spread over all parts, and drawn alike each time."""

from __future__ import annotations

import hashlib
import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.arrays import Numbers
from pipeline.planning.checked_rows import (
    LEAST_ROWS,
    RAISED_SHARE,
    USUAL_SHARE,
    check_probability,
    choose_checked,
)
from pipeline.sources.lookup import are_drawn

SEED, OTHER = (hashlib.sha256(name).hexdigest() for name in (b"a plan", b"another"))


def runs_of(*runs: tuple[int, int, int]) -> Numbers:
    """Runs of (source, first, number of rows)."""
    return np.array([(0, 0, *run) for run in runs], np.int64).reshape(-1, 5)


def rows_of(runs: Numbers) -> set[tuple[int, int]]:
    return {(s, row) for _, _, s, first, n in runs.tolist() for row in range(first, first + n)}


@st.composite
def carried(draw: st.DrawFn) -> tuple[Numbers, list[list[int]]]:
    """Runs of up to three versions, in any order and perhaps twice, and the parts of those."""
    part = st.lists(st.integers(0, 60), min_size=1, max_size=6)
    parts = [[*rows, 1] for rows in draw(st.lists(part, min_size=1, max_size=3))]
    runs = []
    for source in draw(st.lists(st.integers(0, len(parts) - 1), max_size=8)):
        first = draw(st.integers(0, sum(parts[source]) - 1))
        runs.append((source, first, draw(st.integers(1, sum(parts[source]) - first))))
    return runs_of(*runs), parts


@given(carried(), st.booleans(), st.sampled_from([SEED, OTHER]))
def test_they_are_carried_rows_of_every_part_at_least_sixteen_and_at_least_the_share(
    case: tuple[Numbers, list[list[int]]], is_thorough: bool, seed: str
):
    runs, parts = case
    rows = rows_of(runs)
    chosen = choose_checked(runs, parts=parts, seed=seed, is_thorough=is_thorough)
    pairs = [(source, row) for source, row in chosen.tolist()]
    assert chosen.dtype == np.int64
    assert pairs == sorted(set(pairs))
    assert set(pairs) <= rows
    assert len(pairs) >= min(LEAST_ROWS, len(rows))
    assert len(pairs) >= (RAISED_SHARE if is_thorough else USUAL_SHARE) * len(rows)
    for source, sizes in enumerate(parts):
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        for begin, end in itertools.pairwise(bounds.tolist()):
            inside = {(source, row) for row in range(begin, end)}
            assert bool(inside & rows) == bool(inside & set(pairs))
    again = choose_checked(runs, parts=parts, seed=seed, is_thorough=is_thorough)
    assert np.array_equal(chosen, again)


@given(num_rows=st.integers(1, 4_000), wrong=st.sets(st.integers(0, 3_999), min_size=1))
def test_wrong_rows_of_a_part_are_missed_no_more_often_than_is_said(num_rows: int, wrong: set[int]):
    """The exact probability: of each stretch one row is drawn, all with the same probability."""
    wrong = {row for row in wrong if row < num_rows}
    num_asked = min(num_rows, max(LEAST_ROWS, -(-num_rows // 100)))
    length = num_rows // num_asked
    chosen = choose_checked(
        runs_of((0, 0, num_rows)), parts=[[num_rows]], seed=SEED, is_thorough=True
    )
    stretches = [range(at, min(at + length, num_rows)) for at in range(0, num_rows, length)]
    assert [row // length for row in chosen[:, 1].tolist()] == [*range(len(stretches))]
    missed = np.prod([1 - len(wrong & set(each)) / len(each) for each in stretches])
    assert missed <= (1 - len(wrong) / num_rows) ** num_asked + 1e-12


def test_each_row_is_drawn_as_often_as_is_said():
    runs, counts = runs_of((0, 0, 3_200)), np.zeros(3_200, int)
    for number in range(2_000):
        seed = hashlib.sha256(f"{number}".encode()).hexdigest()
        counts[choose_checked(runs, parts=[[3_200]], seed=seed)[:, 1]] += 1
    assert counts.mean() == 10  # each time 16 rows, one of 200
    assert abs(counts - 10).max() < 25
    assert 9 < counts.var() < 11  # as drawn independently: 10 * 199 / 200


def test_of_many_small_parts_no_more_is_drawn_than_a_row_of_each():
    chosen = choose_checked(runs_of((0, 0, 200)), parts=[[10] * 20], seed=SEED, is_thorough=False)
    assert [row // 10 for row in chosen[:, 1].tolist()] == list(range(20))


def test_of_fewer_than_32_rows_all_are_checked():
    chosen = [choose_checked(runs_of((0, 0, n)), parts=[[n]], seed=SEED) for n in (16, 31, 32)]
    assert [*map(len, chosen)] == [16, 31, 16]


def test_another_plan_draws_others_and_nothing_carried_draws_nothing():
    runs = runs_of((0, 0, 10_000))
    one, other = (choose_checked(runs, parts=[[10_000]], seed=seed) for seed in (SEED, OTHER))
    assert not np.array_equal(one, other)
    assert choose_checked(runs_of(), parts=[], seed=SEED).shape == (0, 2)


def test_a_hundred_million_rows_take_the_memory_of_those_that_are_drawn():
    firsts = np.arange(100_000, dtype=np.int64) * 1_100
    runs = np.stack([firsts * 0, firsts, firsts * 0, firsts, np.full(len(firsts), 1_000)], axis=1)
    tracemalloc.start()
    try:
        chosen = choose_checked(runs, parts=[[22_000] * 5_000], seed=SEED, is_thorough=True)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(chosen) == 1_000_000
    assert peak_bytes < 200 * 2**20, "a number of each row would take 763 MiB"


@pytest.mark.parametrize("num_rows", [1, 16, 40, 1_000, 30_000])
def test_of_few_rows_enough_are_drawn_by_chance(num_rows: int):
    hashes = np.random.default_rng(5).integers(0, 256, (num_rows, 16), np.uint8)
    seeds = [hashlib.sha256(f"{number}".encode()).hexdigest() for number in range(500)]
    drawn = [are_drawn(hashes, check_probability(num_rows), seed).sum() for seed in seeds]
    assert min(drawn) >= min(num_rows, LEAST_ROWS)


def test_of_many_rows_the_share_is_drawn():
    assert check_probability(10**8) == USUAL_SHARE
    assert check_probability(10**8, is_thorough=True) == RAISED_SHARE
    assert check_probability(0) == 1.0
