"""The numbers of a merge, as the docstring of `pipeline.runs.retry` gives them."""

from __future__ import annotations

import numpy as np

from pipeline.commit.parts.row_positions import major_keys, make_positions
from pipeline.runs.retry.matching import Match
from pipeline.runs.retry.readmission import merge_positions

QUARANTINED = [1, 2, 4]
POSITIONS = make_positions(0, 0, 0, 6).take(np.array(QUARANTINED))
PREDICTED_BEFORE = POSITIONS.ranks - np.arange(3)
MATCH = Match(
    slices=[],
    duplicates={},
    gone=np.array([0, 1]),
    entries=np.array([0, 1, 1]),
    minors=np.array([0, 0, 1]),
    is_good=np.array([True, True, False]),
)


def test_the_example_of_six_rows_comes_out_as_it_is_written():
    assert PREDICTED_BEFORE.tolist() == [1, 1, 2]
    merged = merge_positions(POSITIONS, PREDICTED_BEFORE, MATCH, is_counted=True)
    two, four = major_keys(np.array([2, 4])).tolist()
    assert merged.keys.tolist() == [two + 1, four]
    assert merged.ranks.tolist() == [3, 5]
    assert (merged.ranks - np.arange(2)).tolist() == [3, 4]
    assert (MATCH.num_recovered, MATCH.num_failed) == (2, 1)


def test_only_the_rest_of_a_shard_moves_the_number_of_the_row():
    rows = [
        merge_positions(POSITIONS, PREDICTED_BEFORE, MATCH, is_counted=is_counted)
        for is_counted in (True, False)
    ]
    assert [positions.rows.tolist() for positions in rows] == [[2, 4], [3, 4]]


def test_a_row_that_replaces_no_entry_is_left_out():
    match = Match([], {}, np.zeros(0, int), np.array([-1]), np.array([0]), np.array([False]))
    merged = merge_positions(POSITIONS, PREDICTED_BEFORE, match, is_counted=False)
    assert np.array_equal(merged.to_matrix(), POSITIONS.to_matrix())
