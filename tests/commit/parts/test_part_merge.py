"""Two streams become one in order, whatever the pieces are that they come in."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.commit.parts.part_merge import interleave
from pipeline.commit.parts.row_positions import (
    Positions,
    from_metadata,
    major_keys,
    make_positions,
    ordinal_within_entry,
    read_keys,
    read_positions,
    to_metadata,
)
from pipeline.core.errors import InfraError

Pieces = list[list[int]]


def stream(name: str, pieces: Pieces) -> Iterator[tuple[pa.Table, np.ndarray]]:
    for piece in pieces:
        table = pa.table({"from": pa.array([name] * len(piece), pa.string())})
        yield table.append_column("key", pa.array(piece, pa.int64())), np.array(piece, np.int64)


def cut_up(values: list[int], cuts: list[int]) -> Pieces:
    bounds = sorted({0, len(values), *(cut % (len(values) + 1) for cut in cuts)})
    return [values[a:b] for a, b in pairwise(bounds)]


def sorted_pieces(*, unique: bool) -> st.SearchStrategy[Pieces]:
    values = st.lists(st.integers(0, 30), unique=unique).map(sorted)
    return st.builds(cut_up, values, st.lists(st.integers(0, 40), max_size=5))


@given(sorted_pieces(unique=True), sorted_pieces(unique=False))
def test_all_rows_come_in_order_and_new_ones_before_old_ones_of_the_same_key(
    old: Pieces, new: Pieces
):
    found = []
    for rows, keys in interleave(stream("old", old), stream("new", new)):
        assert rows.column("key").to_pylist() == keys.tolist()
        assert rows.num_rows
        found += list(zip(keys.tolist(), rows.column("from").to_pylist(), strict=True))
    expected = [(key, "old") for piece in old for key in piece]
    expected += [(key, "new") for piece in new for key in piece]
    assert found == sorted(expected)


def test_only_as_much_is_read_ahead_as_is_needed():
    taken: list[str] = []

    def watched(name: str, pieces: Pieces) -> Iterator[tuple[pa.Table, np.ndarray]]:
        for piece in stream(name, pieces):
            taken.append(name)
            yield piece

    merged = interleave(watched("old", [[1], [2], [3]]), watched("new", [[0] * 9, [0] * 9, [3]]))
    assert next(merged)[0].num_rows == 9
    assert taken == ["old", "new"]


@given(st.integers(0, 10**9), st.integers(0, 10**6), st.integers(0, 10**9), st.integers(1, 50))
def test_positions_survive_a_file_and_say_where_rows_are(first, unit, start, num_rows):
    written = make_positions(first, unit, start, num_rows).take(slice(None, None, 3))
    metadata = {k.encode(): v.encode() for k, v in to_metadata(written.to_matrix()).items()}
    positions = read_positions(metadata, len(written), "part")
    assert np.array_equal(positions.to_matrix(), written.to_matrix())
    assert np.array_equal(read_keys(metadata, len(written), "part"), written.keys)
    assert positions.units.tolist() == [unit] * len(positions)
    assert positions.rows.tolist() == list(range(start, start + num_rows, 3))
    assert positions.ranks.tolist() == list(range(first, first + num_rows, 3))
    assert ordinal_within_entry(positions.keys + 5).tolist() == [5] * len(positions)
    assert (major_keys(positions.ranks) == positions.keys).all()


def test_damaged_places_are_said():
    numbers = make_positions(0, 0, 0, 3).to_matrix()
    metadata = {k.encode(): v.encode() for k, v in to_metadata(numbers).items()}
    with pytest.raises(InfraError, match="part-1: the places of its rows are damaged"):
        from_metadata(metadata, 4, "part-1")
    with pytest.raises(InfraError, match="part-1: the places of its rows are damaged"):
        read_keys(metadata, 4, "part-1")
    with pytest.raises(InfraError, match="part-1: the places of its rows are damaged"):
        from_metadata({}, 3, "part-1")


def test_joined_places_are_exact_beyond_the_whole_numbers_of_float64():
    some = [make_positions(2**40 + number, number, 2**55 + 1, 2) for number in range(2)]
    joined = Positions.joined(some)
    assert joined.rows.tolist() == [2**55 + 1, 2**55 + 2] * 2
    assert {column.dtype for column in (joined.keys, joined.units, joined.rows, joined.ranks)} == {
        np.dtype(np.int64)
    }
    assert len(Positions.joined([])) == 0
