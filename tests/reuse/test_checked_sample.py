"""Promise: enough known rows of each part are predicted again and compared, always the same."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.models.agreement import AgreementLimits
from pipeline.models.tasks.base import TaskSpec
from pipeline.reuse.checked_sample import LEAST_ROWS, Checker, are_drawn, choose_checked

SEED, OTHER = (hashlib.sha256(name).hexdigest() for name in (b"a plan", b"another"))
LIMITS = AgreementLimits(0.01, 0.999, 0.01)


@example([(90, 0)], [30, 60], False)  # 5.3 of each part
@given(
    st.lists(st.tuples(st.integers(1, 400), st.integers(0, 300)), min_size=1, max_size=12),
    st.lists(st.integers(0, 2_000), max_size=8),
    st.booleans(),
)
def test_enough_rows_of_every_part_and_of_all_rows_are_chosen(
    pieces: list[tuple[int, int]], cuts: list[int], is_thorough: bool
):
    counts, gaps = (np.array(column, np.int64) for column in zip(*pieces, strict=True))
    ends = np.cumsum(counts + gaps)
    runs = np.stack(
        [np.arange(len(counts)), np.zeros_like(counts), counts, 0 * counts, ends - counts], axis=1
    )
    total = int(ends[-1]) + 7
    bounds = sorted({0, total, *(cut % total for cut in cuts)})
    parts = [np.diff(bounds).tolist()]
    chosen = choose_checked(runs, parts, SEED, is_thorough=is_thorough)
    assert np.array_equal(choose_checked(runs, parts, SEED, is_thorough=is_thorough), chosen)
    places = runs[chosen[:, 0], 4] + chosen[:, 1]
    assert len({*places.tolist()}) == len(chosen)
    assert (chosen[:, 1] < counts[chosen[:, 0]]).all()
    known = np.concatenate([np.arange(r[4], r[4] + r[2]) for r in runs.tolist()])
    assert np.isin(places, known).all()
    share = 0.01 if is_thorough else 0.001
    assert len(chosen) >= min(len(known), max(LEAST_ROWS, share * len(known)))
    for low, high in pairwise(bounds):
        has_known = ((known >= low) & (known < high)).any()
        assert ((places >= low) & (places < high)).any() == has_known


def test_other_plans_choose_other_rows():
    runs = np.array([[0, 0, 100_000, 0, 0]], np.int64)
    one, other = (choose_checked(runs, [[100_000]], s, is_thorough=False) for s in (SEED, OTHER))
    assert not np.array_equal(one, other)
    assert 100 <= len(one) <= 101


@pytest.mark.parametrize("probability", [0.001, 0.01, 0.5])
def test_rows_are_drawn_by_content_with_the_given_probability(probability: float):
    hashes = np.random.default_rng(5).integers(0, 256, (400_000, 16), np.uint8)
    for order in (slice(None), np.argsort(hashes[:, 0], kind="stable")):
        chosen = are_drawn(hashes[order], probability, SEED)
        expected = probability * len(hashes)
        assert abs(chosen.sum() - expected) < 5 * np.sqrt(expected)
    one, other = (are_drawn(hashes, probability, seed) for seed in (SEED, OTHER))
    assert (one & other).sum() < 4 * probability**2 * len(hashes) + 10, "another plan draws others"
    assert are_drawn(hashes[:9], 1.0, SEED).all()
    assert not are_drawn(hashes[:9], 0.0, SEED).any()


def numbers(values: list[float | None], reason: str = "too_large") -> pa.Table:
    errors = [None if value is not None else reason for value in values]
    columns = {
        "row_id": [f"r{n}" for n in range(len(values))],
        "value": values,
        "error": pa.array(errors, pa.string()),
    }
    return pa.table({**columns, "value": pa.array(values, pa.float32())})


def test_numbers_are_compared_by_the_usual_size_of_the_slice_and_failed_rows_differ():
    checker = Checker(TaskSpec("regress", targets=("value",)), LIMITS)
    known, others = numbers([0.0, 100.0, 5.0]), numbers([100.0] * 20)
    assert checker(known, numbers([0.5, 100.5, 5.0]), others) == (3, [])
    num_rows, lines = checker(known, numbers([0.0, 150.0, None]), others)
    assert num_rows == 3
    assert [line.partition(":")[0] for line in lines] == ["r2", "r1"]
    assert "is in quarantine now: too_large" in lines[0]
    of_moment = numbers([0.0, 100.0, None], "timeout")
    assert checker(known, of_moment, others) == (2, []), "the moment may be why"
