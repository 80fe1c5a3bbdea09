"""Whether two ways to run a model agree, row by row. Pure: what a task keeps goes in.

The reference is always eager fp32. Each task chooses: labels agree when the best one is the same
and its probability differs by little, vectors by their cosine, numbers by their relative error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # actors need no pydantic: a quarter of a second each
    from pipeline.job.gates import Gates

Values = npt.NDArray[Any]


@dataclass(frozen=True)
class AgreementLimits:
    """How far a row may be from the reference."""

    max_score_diff: float
    min_cosine: float
    max_relative_error: float

    @classmethod
    def of(cls, gates: Gates) -> AgreementLimits:
        """Take the limits from a job's gates."""
        return cls(gates.max_score_diff, gates.min_cosine, gates.max_relative_error)


@dataclass(frozen=True)
class Agreement:
    """How two runs over the same rows compare."""

    agrees: npt.NDArray[np.bool_]
    """(N,)"""
    worst: float
    """The largest difference of scores, the smallest cosine, or the largest relative error."""

    @property
    def pct(self) -> float:
        """Share of the rows that agree."""
        return 100.0 * float(self.agrees.mean()) if len(self.agrees) else 100.0


def compare_labels(
    label_ids: tuple[Values, Values], scores: tuple[Values, Values], limits: AgreementLimits
) -> Agreement:
    """Compare the best labels of a reference and a candidate, in this order.

    Args:
        label_ids: Whole numbers, (N, k) each; the first of a row is the best.
        scores: Probabilities, (N, k) each.
        limits: Uses `max_score_diff`.
    """
    same = label_ids[0][:, 0] == label_ids[1][:, 0]
    differences = np.abs(_plain(scores[0])[:, 0] - _plain(scores[1])[:, 0])
    return Agreement(same & (differences <= limits.max_score_diff), _worst(differences, np.max))


def compare_vectors(reference: Values, candidate: Values, limits: AgreementLimits) -> Agreement:
    """Compare vectors, (N, D) each, by their cosines."""
    cosines = _cosines(_plain(reference), _plain(candidate))
    return Agreement(cosines >= limits.min_cosine, _worst(cosines, np.min))


def compare_numbers(
    reference: Mapping[str, Values], candidate: Mapping[str, Values], limits: AgreementLimits
) -> Agreement:
    """Compare numbers by name, (N, ...) each, by the largest relative error of each row."""
    errors = np.max(
        [_relative_errors(_plain(reference[name]), _plain(candidate[name])) for name in reference],
        axis=0,
    )
    return Agreement(errors <= limits.max_relative_error, _worst(errors, np.max))


def _worst(figures: npt.NDArray[np.float64], pick: Callable[..., Any]) -> float:
    # A figure that is NaN agrees with nothing: no comparison with it holds.
    return float(pick(figures)) if len(figures) else 0.0


def _plain(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    return np.asarray(values, np.float64)


def _cosines(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products = (a * b).sum(axis=1)
    equal = (a == b).all(axis=1)  # two vectors of zeros have no cosine, and agree
    return np.where(equal, 1.0, products / np.where(lengths == 0.0, np.nan, lengths))


def _relative_errors(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the largest error of each row, relative to the size that the output usually has."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    usual = np.sqrt((a**2).mean()) if a.size else 0.0
    scale = np.maximum(np.abs(a), usual)
    errors = np.abs(a - b) / np.where(scale == 0.0, 1.0, scale)
    return np.asarray(errors.max(axis=1, initial=0.0), np.float64)
