"""Bins of the population stability index: every row is in one, and where one begins."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.figures.histograms import Distribution, Numbers
from pipeline.gates.drift import compare_labels, compare_numbers

COUNTS = st.dictionaries(st.integers(0, 30), st.integers(1, 500), max_size=20)


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
