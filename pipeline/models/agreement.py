"""Compare two predictions of the same rows, row by row: arrays of a task, or published columns.

The reference is always eager fp32. The task chooses the comparison: labels and the differences of
their probabilities, the cosine of vectors, or the relative error of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.arrays import as_array
from pipeline.core.printable import clean_message

if TYPE_CHECKING:
    from pipeline.job.gates import Gates

Values = npt.NDArray[Any]
"""Any numeric dtype; compared as float64, label ids as they are."""
_SHOWN_CHARS = 60


@dataclass(frozen=True)
class AgreementLimits:
    """Largest differences of a row from the reference; the limit itself is allowed."""

    max_score_diff: float
    """Absolute difference of probabilities."""
    min_cosine: float
    max_relative_error: float
    """Relative error as a fraction; see `compare_numbers`."""
    allows_ties: bool = False
    """Whether either of two labels, or of two boxes of an object, that score the same agrees: in
    batches of other sizes the same model may give the other one."""

    @classmethod
    def of(cls, gates: Gates) -> AgreementLimits:
        """Return the limits of a job's gates."""
        return cls(gates.max_score_diff, gates.min_cosine, gates.max_relative_error)

    def with_ties(self) -> AgreementLimits:
        """Return the limits for rows that one model predicts twice, in batches of other sizes."""
        return replace(self, allows_ties=True)


SAME = AgreementLimits(0.001, 0.99999, 0.001, allows_ties=True)
"""Limits for one model in fp32 over the same row, in any batch, on any machine."""


@dataclass(frozen=True)
class Agreement:
    """The comparison of two runs over the same N rows."""

    agrees: npt.NDArray[np.bool_]
    """bool (N,): rows within the limit; False for NaN."""
    worst: float
    """The largest difference of scores, the smallest cosine, or the largest relative error; 0 if
    N = 0."""

    @property
    def pct(self) -> float:
        """Return the percentage of rows that agree; 100 if N = 0."""
        return 100.0 * float(self.agrees.mean()) if len(self.agrees) else 100.0


def within(differences: Values, limit: float, same: Values | bool = True) -> Agreement:
    """Return which rows differ by at most a limit.

    Args:
        differences: N rows, (N, ...); NaN agrees with nothing.
        limit: The largest that a row may have.
        same: bool (N,): rows that may agree.
    """
    others = tuple(range(1, differences.ndim))
    largest = np.asarray(_plain(differences).max(axis=others, initial=0.0))
    return Agreement((largest <= limit) & same, _worst(largest, np.max))


def compare_vectors(reference: Values, candidate: Values, min_cosine: float) -> Agreement:
    """Compare vectors, (N, D) each, by their cosines; two of zeros agree, too."""
    a, b = _plain(reference), _plain(candidate)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.where(lengths == 0.0, np.nan, lengths)
    cosines = np.where((a == b).all(axis=1), 1.0, cosines)
    return Agreement(cosines >= min_cosine, _worst(cosines, np.min))


def compare_numbers(
    reference: Mapping[str, Values], candidate: Mapping[str, Values], limits: AgreementLimits
) -> Agreement:
    """Compare outputs by the largest relative error of each row.

    Errors are relative to the larger of the reference value and the root mean square of its output,
    so that values near 0 do not dominate.

    Args:
        reference: Output name -> float (N, ...).
        candidate: The same names and shapes.
        limits: Uses `max_relative_error`.
    """
    errors = [
        _relative_errors(_plain(reference[name]), _plain(candidate[name])) for name in reference
    ]
    return within(np.stack(errors, axis=1), limits.max_relative_error)


def _worst(figures: npt.NDArray[np.float64], pick: Callable[..., Any]) -> float:
    # NaN propagates, and no row with NaN agrees: comparisons with it are False.
    return float(pick(figures)) if len(figures) else 0.0


def _plain(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    return np.asarray(values, np.float64)


def _relative_errors(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return float64 (N,): the largest relative error per row of `b` against `a`, (N, ...) each."""
    flat = len(a), math.prod(a.shape[1:])
    a, b = a.reshape(flat), b.reshape(flat)
    usual = np.sqrt((a**2).mean()) if a.size else 0.0
    scale = np.maximum(np.abs(a), usual)
    errors = np.abs(a - b) / np.where(scale == 0.0, 1.0, scale)
    return np.asarray(errors.max(axis=1, initial=0.0), np.float64)


Compare = Callable[[dict[str, Values], dict[str, Values], AgreementLimits], Agreement]


def column_differences(
    known: pa.Table, actual: pa.Table, limits: AgreementLimits, compare: Compare
) -> list[str]:
    """Describe for each row how predicted columns differ from the known ones; '' if they agree.

    Args:
        actual: The same rows, with at least these columns.
        limits: Largest differences of numbers.
        compare: `Task.compare`; gets columns of numbers, or of lists of one length of them, as
            float64 (N, ...), by their names.
    """
    differences, sides = [""] * known.num_rows, (dict[str, Values](), dict[str, Values]())
    for name in known.column_names:
        pair = as_array(known.column(name)), as_array(actual.column(name))
        if all(_is_plain(column) for column in pair):
            sides[0][name], sides[1][name] = _comparable(*map(_numbers, pair))
            continue
        for row, (a, b) in enumerate(zip(*(column.to_pylist() for column in pair), strict=True)):
            if not differences[row] and not _alike(a, b, limits.max_relative_error):
                differences[row] = f"expected {name} {_shown(a)}, found {_shown(b)}"
    differing = np.flatnonzero(~compare(*sides, limits).agrees).tolist() if sides[0] else []
    sizes = _sizes(sides[0]) if differing else {}
    for row in differing:
        differences[row] = differences[row] or _worst_number(*sides, row, sizes)
    return differences


def entry_differences(
    known: Mapping[str, float | None],
    actual: Mapping[str, float],
    least: tuple[float, float],
    limit: float,
) -> list[str]:
    """Describe how the scored labels of a row differ.

    Args:
        known: Label -> its score; None: any.
        actual: The same of the other side.
        least: The largest score of a label that the known, the predicted side does not list.
        limit: The largest difference of a score.
    """
    differences = []
    for label, score in known.items():
        now = actual.get(label)
        is_near = now is not None if score is None else _is_near(score, now, least[1], limit)
        if not is_near:
            shown = "none" if now is None else f"{now:.4f}"
            differences.append(
                f"expected {label!r}{'' if score is None else f' {score:.4f}'}, found {shown}"
            )
    for label, score in actual.items():
        if label not in known and not score - least[0] <= limit:
            differences.append(f"expected no {label!r}, found {score:.4f}")
    return differences


def _is_near(score: float, now: float | None, least: float, limit: float) -> bool:
    return score - least <= limit if now is None else abs(score - now) <= limit


def _is_plain(column: pa.Array) -> bool:
    """Tell whether a column is of floats, or of lists of one length of them, without nulls."""
    dtype = column.type
    while pa.types.is_fixed_size_list(dtype):
        dtype = dtype.value_type
    return bool(pa.types.is_floating(dtype)) and not column.null_count


def _numbers(column: pa.Array) -> Values:
    """Return float64 (N, size)."""
    shape = [len(column), 1]
    while pa.types.is_fixed_size_list(column.type):
        shape[1] *= column.type.list_size
        column = column.flatten()
    return np.asarray(column.to_numpy(zero_copy_only=False), np.float64).reshape(shape)


def _comparable(a: Values, b: Values) -> tuple[Values, Values]:
    """Return both, with 0 where they have the same value that is not finite."""
    if np.isfinite(a).all() and np.isfinite(b).all():
        return a, b
    same = ~np.isfinite(a) & ((a == b) | (np.isnan(a) & np.isnan(b)))
    return np.where(same, 0.0, a), np.where(same, 0.0, b)


def _sizes(columns: Mapping[str, Values]) -> dict[str, float]:
    """Return the largest finite number of each column, 1 where that is 0."""
    finite = {name: np.where(np.isfinite(values), values, 0.0) for name, values in columns.items()}
    return {name: float(np.abs(values).max(initial=0.0)) or 1.0 for name, values in finite.items()}


def _worst_number(
    known: Mapping[str, Values],
    actual: Mapping[str, Values],
    row: int,
    sizes: Mapping[str, float],
) -> str:
    """Describe the number of a row that differs most for its column."""
    shown: list[tuple[float, str]] = [(-1.0, "other numbers than expected")]
    for name, values in known.items():
        a, b = values[row], actual[name][row]
        off = np.nan_to_num(np.abs(a - b), nan=np.inf)
        if off.size:
            place = int(off.argmax())
            at = f"[{place}]" if off.size > 1 else ""
            text = f"expected {name}{at} {a[place]:.6g}, found {b[place]:.6g}"
            shown.append((float(off[place]) / sizes[name], text))
    return max(shown)[1]


def _alike(a: Any, b: Any, limit: float, usual: float = 0.0) -> bool:
    """Compare two values of Python; numbers of a list relative to its largest one."""
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (a != a and b != b) or abs(a - b) <= limit * max(abs(a), usual)
    if isinstance(a, list) and isinstance(b, list):
        largest = max((abs(item) for item in a if isinstance(item, float)), default=0.0)
        pairs = zip(a, b, strict=False)
        return len(a) == len(b) and all(_alike(x, y, limit, largest) for x, y in pairs)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key], limit) for key in a)
    return bool(a == b)


def _shown(value: Any) -> str:
    text = clean_message(repr(value))
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
