"""What vectors cannot hold of the numbers that become features: integers and sizes.

Pure over Arrow and numpy. The columns of a table become `Piece`s; these, once joined, are judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_EXACT = {"float32": 2**24, "float64": 2**53}
"""Type of the vectors -> it holds every integer up to this one."""

Mask = npt.NDArray[np.bool_]
Values = npt.NDArray[Any]


@dataclass(frozen=True)
class FeatureRows:
    """The feature vectors of N rows, and which values they cannot hold."""

    values: Values
    """float32 or float64 (N, F); a null is what the job says, NaN where it costs the row."""
    nulls: dict[str, Mask] = field(default_factory=dict)
    """Column with nulls that cost their rows -> bool (N,)."""
    unknown: dict[str, Mask] = field(default_factory=dict)
    """Column with values that are no category, or no date, and cost their rows -> bool (N,)."""
    overflows: dict[str, Mask] = field(default_factory=dict)
    """Column with finite numbers beyond float32 -> bool (N,): rows that have one."""
    inexact: dict[str, int] = field(default_factory=dict)
    """Column with integers that float32 cannot hold -> one of these integers."""

    def is_bad(self) -> Mask:
        """Return bool (N,): rows that have no vector."""
        masks = (*self.nulls.values(), *self.unknown.values(), *self.overflows.values())
        none = np.zeros(len(self.values), np.bool_)
        return np.asarray(np.logical_or.reduce([none, *masks]), np.bool_)


@dataclass(frozen=True)
class Piece:
    """What becomes of one entry."""

    name: str
    values: Values
    """(N, W) of any type of numbers; anything at nulls."""
    column: pa.Array | None = None
    """(N * W,) the numbers; None if they are exact in float32."""
    nulls: Mask | None = None
    """bool (N, W); None: there are none."""
    null_means: float | None = None
    """The number in place of a null; None: it costs the row."""
    unknown: Mask | None = None
    """bool (N,): rows that a value costs; None: none."""


def judged(pieces: Sequence[Piece], values: Values, *, has_integers: bool) -> FeatureRows:
    """Put what stands for nulls into the vectors, and find what their type cannot hold."""
    found = FeatureRows(values)
    is_finite = bool(np.isfinite(values).all())
    start = 0
    for piece in pieces:
        own = values[:, start : start + piece.values.shape[1]]
        start += piece.values.shape[1]
        if piece.column is not None and pa.types.is_integer(piece.column.type):
            _judge_whole(piece, own, found)
        elif piece.column is not None:
            _judge_fractions(piece, own, found, has_integers=has_integers, is_finite=is_finite)
        if piece.nulls is not None:
            own[piece.nulls] = np.nan if piece.null_means is None else piece.null_means
            if piece.null_means is None:
                _note(found.nulls, piece.name, _rows(piece.nulls))
        if piece.unknown is not None:
            _note(found.unknown, piece.name, piece.unknown)
    return found


def _note(masks: dict[str, Mask], name: str, mask: Mask) -> None:
    masks[name] = masks[name] | mask if name in masks else mask


def _judge_whole(piece: Piece, own: Values, found: FeatureRows) -> None:
    """Find integers that the vectors cannot hold; `own` is what became of them, (N, W)."""
    exact = _EXACT[own.dtype.name]
    if piece.column is None or (rounded := _inexact(piece.column, exact)) is None:
        return
    rounded = rounded.reshape(own.shape)
    if piece.nulls is not None:
        rounded &= ~piece.nulls
    if rounded.any():
        place = int(np.flatnonzero(rounded.reshape(-1))[0])
        found.inexact.setdefault(piece.name, piece.column[place].as_py())


def _judge_fractions(
    piece: Piece, own: Values, found: FeatureRows, *, has_integers: bool, is_finite: bool
) -> None:
    """Find numbers that are too large for the vectors, and whole ones that they round.

    Args:
        piece: Of float64, or of decimals, whose `values` are float64.
        own: (N, W): what became of them.
        found: Gets what is found.
        has_integers: As in `feature_rows`.
        is_finite: All vectors are finite, so no number was too large.
    """
    exact = piece.values
    is_there = np.ones((), np.bool_) if piece.nulls is None else ~piece.nulls
    if not is_finite:
        overflow = np.isinf(own) & np.isfinite(exact) & is_there
        if overflow.any():
            _note(found.overflows, piece.name, _rows(overflow))
    if has_integers and not is_whole_decimal(piece.column):
        return
    with np.errstate(invalid="ignore"):
        whole = np.isfinite(own) & (exact == np.floor(exact)) & is_there
        rounded = (own != exact) & whole
        # Beyond 2^53 float64 has rounded, too: few columns have such numbers.
        large = (np.abs(exact) >= _EXACT["float64"]) & whole & ~rounded
    if rounded.any():
        place = int(np.flatnonzero(rounded.reshape(-1))[0])
        found.inexact.setdefault(piece.name, _number_at(piece, place))
    elif is_whole_decimal(piece.column):
        for place in np.flatnonzero(large.reshape(-1)).tolist():
            number = _number_at(piece, place)
            if number != int(own.reshape(-1)[place]):
                found.inexact.setdefault(piece.name, number)
                break
    elif own.dtype == exact.dtype and large.any():  # of JSON: perhaps rounded when it was read
        place = int(np.flatnonzero(large.reshape(-1))[0])
        found.inexact.setdefault(piece.name, _number_at(piece, place))


def _number_at(piece: Piece, place: int) -> int:
    assert piece.column is not None, "it is judged"
    return int(piece.column[place].as_py())


def is_whole_decimal(column: pa.Array | None) -> bool:
    """Tell whether a column is of decimals without places, whose numbers all are whole."""
    return column is not None and pa.types.is_decimal(column.type) and column.type.scale <= 0


def _rows(where: Mask) -> Mask:
    """Return bool (N,): rows of bool (N, W) with one."""
    return np.asarray(where.any(axis=1), np.bool_)


def _inexact(column: pa.Array, exact: int) -> Mask | None:
    """Return bool: integers with more significant bits than `exact` has; None: no one."""
    bounds = pc.min_max(column).as_py()
    low, high = bounds["min"] or 0, bounds["max"] or 0
    if low >= -exact and high <= exact:
        return None
    numbers = column.fill_null(0).to_numpy(zero_copy_only=False)
    # The lowest 64-bit number has no positive counterpart, yet as uint64 it is right again.
    size = np.abs(numbers.astype(np.int64)) if numbers.dtype != np.uint64 else numbers
    bits = size.astype(np.uint64)
    lowest = np.maximum(bits & (~bits + np.uint64(1)), np.uint64(1))
    return np.asarray(bits // lowest >= np.uint64(exact))
