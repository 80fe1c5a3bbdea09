"""What a step of a model that writes takes, as it follows from the steps that were."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.figures.slice_figures import Steps


def steps_of(places: Sequence[int], takes: Callable[[int], float]) -> Steps:
    return sum((Steps.one(each, takes(each)) for each in places), Steps())


@given(
    st.lists(st.integers(1, 64), min_size=2).filter(lambda places: len(set(places)) > 1),
    st.floats(1e-3, 1.0),
    st.floats(1e-3, 0.1),
)
def test_a_time_per_step_and_one_per_place_are_found_again(
    places: list[int], a_step_s: float, a_place_s: float
):
    found = steps_of(places, lambda num: a_step_s + num * a_place_s)
    for num in range(1, max(places) + 1):
        if num <= 4 * found.num_places / found.num_steps:
            assert found.row_s(num) == pytest.approx(a_step_s / num + a_place_s, rel=0.02)


@given(st.lists(st.integers(1, 64), min_size=1), st.data(), st.integers(1, 512))
def test_a_place_is_never_cheaper_than_in_four_times_as_full_steps_of_the_same_time(
    places: list[int], data: st.DataObject, num: int
):
    took_s = st.floats(1e-3, 1.0)
    found = sum((Steps.one(each, data.draw(took_s)) for each in places), Steps())
    mean_s = found.busy_s / found.num_places
    assert found.row_s(num) >= mean_s / 4.5
    more, fewer = found.row_s(num + 1), found.row_s(num)
    assert more <= fewer * (1 + 1e-9)


def test_where_all_steps_had_as_many_places_one_takes_what_it_took():
    found = steps_of([8, 8, 8], lambda num: 0.4)
    assert [found.row_s(num) for num in (1, 8, 64)] == pytest.approx([0.05] * 3)


def test_steps_that_take_less_with_more_places_are_taken_to_last_as_long():
    found = steps_of([8, 4], lambda num: 0.2 - num / 100)
    assert found.row_s(6) == pytest.approx(0.14 / 6)


def test_of_no_step_nothing_is_known():
    assert Steps().row_s(16) == 0
