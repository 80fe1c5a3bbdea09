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
    rows = FeatureRows(values)
    is_finite = bool(np.isfinite(values).all())
    start = 0
    for piece in pieces:
        out = values[:, start : start + piece.values.shape[1]]
        start += piece.values.shape[1]
        if piece.column is not None:
            is_there = np.ones((), np.bool_) if piece.nulls is None else ~piece.nulls
            if not is_finite:
                overflow = np.isinf(out) & np.isfinite(piece.values) & is_there
                if overflow.any():
                    _note(rows.overflows, piece.name, _rows(overflow))
            lost = _lost(piece, piece.column, out, has_integers=has_integers) & is_there
            if lost.any():
                place = int(np.flatnonzero(lost)[0])
                rows.inexact.setdefault(piece.name, int(piece.column[place].as_py()))
        if piece.nulls is not None:
            out[piece.nulls] = np.nan if piece.null_means is None else piece.null_means
            if piece.null_means is None:
                _note(rows.nulls, piece.name, _rows(piece.nulls))
        if piece.unknown is not None:
            _note(rows.unknown, piece.name, piece.unknown)
    return rows


def _note(masks: dict[str, Mask], name: str, mask: Mask) -> None:
    masks[name] = masks[name] | mask if name in masks else mask


def _lost(piece: Piece, column: pa.Array, out: Values, *, has_integers: bool) -> Mask:
    """Return bool, perhaps (N, W): whole numbers that the vectors do not hold; any at nulls.

    Args:
        column: That of the piece: integers, float64, or decimals, whose `values` are float64.
        out: (N, W): what became of the values.
        has_integers: As in `feature_rows`.
    """
    numbers, exact = piece.values, _EXACT[out.dtype.name]
    lost = np.zeros(out.shape, np.bool_)
    if pa.types.is_integer(column.type):
        bounds = pc.min_max(column).as_py()
        if -exact <= (bounds["min"] or 0) and (bounds["max"] or 0) <= exact:
            return lost
        with np.errstate(invalid="ignore"):
            beyond = out >= 2.0 ** int(np.iinfo(numbers.dtype).max).bit_length()
            return np.asarray(beyond | (out.astype(numbers.dtype) != numbers))
    if is_whole_decimal(column):
        is_large = np.isfinite(out) & (np.abs(numbers) > exact)
        for place in np.flatnonzero(is_large).tolist():
            if column[place].is_valid and int(column[place].as_py()) != int(out.flat[place]):
                lost.flat[place] = True
                break
    elif not has_integers:
        with np.errstate(invalid="ignore"):
            # What was beyond 2^53 may have been rounded when it was read.
            is_inexact = np.abs(numbers) >= exact if out.dtype == np.float64 else out != numbers
            lost = np.isfinite(out) & (numbers == np.floor(numbers)) & is_inexact
    return lost


def is_whole_decimal(column: pa.Array | None) -> bool:
    """Tell whether a column is of decimals without places, whose numbers all are whole."""
    return column is not None and pa.types.is_decimal(column.type) and column.type.scale <= 0


def _rows(where: Mask) -> Mask:
    """Return bool (N,): rows of bool (N, W) with one."""
    return np.asarray(where.any(axis=1), np.bool_)
