"""Each row of a slice begins a chain of pieces, and pieces never overlap partly."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.slices import SliceKey


def all_pieces(key: SliceKey) -> list[SliceKey]:
    if key.num_rows == 1:
        return [key]
    return [key, *(piece for half in key.halves() for piece in all_pieces(half))]


@given(start=st.integers(0, 1000), num_rows=st.integers(1, 70), is_last=st.booleans())
def test_pieces_tile_their_slice_and_never_cross(start: int, num_rows: int, is_last: bool):
    key = SliceKey(3, start, start + num_rows, is_last)
    pieces = all_pieces(key)
    for row in range(key.start, key.end):
        pieces_from_row = key.pieces_from(row)
        assert pieces_from_row == sorted(
            (piece for piece in pieces if piece.start == row), key=lambda piece: -piece.end
        )
        assert pieces_from_row[-1].num_rows == 1
    assert all(piece.is_last == (is_last and piece.end == key.end) for piece in pieces)
    for one in pieces:
        for other in pieces:
            is_apart = one.end <= other.start or other.end <= one.start
            is_inside = one.start <= other.start and other.end <= one.end
            is_around = other.start <= one.start and one.end <= other.end
            assert is_apart or is_inside or is_around
