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


def compare_labels(
    label_ids: tuple[Values, Values], scores: tuple[Values, Values], limits: AgreementLimits
) -> Agreement:
    """Compare the best labels of a reference and a candidate.

    Args:
        label_ids: Of reference and candidate, integers (N, k) each; column 0 is the best label.
        scores: Of reference and candidate, probabilities in [0, 1], float (N, k) each, descending.
        limits: Uses `max_score_diff`, and `allows_ties`: of labels with like scores on both sides
            either may be the best.
    """
    a, b = (_plain(each) for each in scores)
    same = label_ids[0][:, 0] == label_ids[1][:, 0]
    if limits.allows_ties:
        same |= _score_of(label_ids[0][:, :1], label_ids[1], b) >= b[:, 0] - limits.max_score_diff
    differences = np.abs(a[:, 0] - b[:, 0])
    return Agreement(same & (differences <= limits.max_score_diff), _worst(differences, np.max))


def _score_of(
    wanted: Values, label_ids: Values, scores: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the score (N,) of a label (N, 1); of one that is not listed the most it can have."""
    is_listed = label_ids == wanted
    score = np.where(is_listed, scores, 0.0).sum(axis=1)
    return np.where(is_listed.any(axis=1), score, scores[:, -1])


def compare_kept(
    reference: Values, candidate: Values, min_score: float, limits: AgreementLimits
) -> Agreement:
    """Compare probabilities, of which those from `min_score` on are kept.

    A row agrees if the scores of all that either side keeps differ by at most `max_score_diff`. So
    both keep the same, unless a score is that near to `min_score`.

    Args:
        reference: Float (N, K).
        candidate: Float (N, K).
        min_score: From which score on a label is kept.
        limits: Uses `max_score_diff`.
    """
    a, b = _plain(reference), _plain(candidate)
    differences = np.abs(a - b)
    matters = (a >= min_score) | (b >= min_score) | np.isnan(differences)
    largest = np.where(matters, differences, 0.0).max(axis=1, initial=0.0)
    return Agreement(largest <= limits.max_score_diff, _worst(largest, np.max))


def compare_tokens(
    reference: tuple[Values, Values], candidate: tuple[Values, Values], limits: AgreementLimits
) -> Agreement:
    """Compare the best labels of tokens; a row agrees if each of its tokens does.

    Args:
        reference: Labels and their scores, (N, L) each; score 0: the row has no such token.
        candidate: The same of the candidate, whose L may be another one.
        limits: Uses `max_score_diff`.
    """
    length = max(reference[0].shape[1], candidate[0].shape[1])
    (labels_a, a), (labels_b, b) = (
        tuple(np.pad(values, ((0, 0), (0, length - values.shape[1]))) for values in each)
        for each in (reference, candidate)
    )
    differences = np.abs(_plain(a) - _plain(b))
    is_token = (a != 0) | (b != 0)
    same = (labels_a == labels_b) | ~is_token
    agrees = (same & (differences <= limits.max_score_diff)).all(axis=1)
    return Agreement(agrees, _worst(differences.max(axis=1, initial=0.0), np.max))


def compare_vectors(reference: Values, candidate: Values, limits: AgreementLimits) -> Agreement:
    """Compare vectors by their cosines; equal vectors have cosine 1, zeros included.

    Args:
        reference: Float (N, D).
        candidate: Float (N, D).
        limits: Uses `min_cosine`.
    """
    cosines = _cosines(_plain(reference), _plain(candidate))
    return Agreement(cosines >= limits.min_cosine, _worst(cosines, np.min))


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
    errors = np.max(
        [_relative_errors(_plain(reference[name]), _plain(candidate[name])) for name in reference],
        axis=0,
    )
    return Agreement(errors <= limits.max_relative_error, _worst(errors, np.max))


def _worst(figures: npt.NDArray[np.float64], pick: Callable[..., Any]) -> float:
    # NaN propagates, and no row with NaN agrees: comparisons with it are False.
    return float(pick(figures)) if len(figures) else 0.0


def _plain(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    return np.asarray(values, np.float64)


def _cosines(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products = (a * b).sum(axis=1)
    equal = (a == b).all(axis=1)  # two zero vectors have no cosine, but agree
    return np.where(equal, 1.0, products / np.where(lengths == 0.0, np.nan, lengths))


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
