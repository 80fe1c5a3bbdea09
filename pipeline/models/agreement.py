"""Compare two runs of a model over the same rows, row by row. Pure: takes the arrays of a task.

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

if TYPE_CHECKING:  # actors need no pydantic: a quarter of a second each
    from pipeline.job.gates import Gates

Values = npt.NDArray[Any]
"""Any numeric dtype; compared as float64, label ids as they are."""


@dataclass(frozen=True)
class AgreementLimits:
    """How far a row may be from the reference; each limit itself is allowed."""

    max_score_diff: float
    """Absolute difference of probabilities."""
    min_cosine: float
    max_relative_error: float
    """Relative error as a fraction; see `compare_numbers`."""
    allows_ties: bool = False
    """Where batches of other sizes may tip the balance between two labels, or two boxes of an
    object, either may be published: the same model gives both."""

    @classmethod
    def of(cls, gates: Gates) -> AgreementLimits:
        """Return the limits of a job's gates."""
        return cls(gates.max_score_diff, gates.min_cosine, gates.max_relative_error)

    def with_ties(self) -> AgreementLimits:
        """Return the limits for rows that one model predicts twice, in batches of other sizes."""
        return replace(self, allows_ties=True)


SAME = AgreementLimits(0.001, 0.99999, 0.001, allows_ties=True)
"""Of one model in fp32 over the same row, whatever the batch or the machine."""


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
        differences: Of N rows, (N, ...); NaN agrees with nothing.
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
