"""Whether two ways to run a model agree, row by row. Pure: what a task keeps goes in.

The reference is always eager fp32. A row of `classify` agrees when its best label is the same and
the label's probability differs by little; a vector by its cosine; numbers by their relative error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.core.schema import EMBEDDING, LABEL_ID, SCORE
from pipeline.models.tasks import Arrays

if TYPE_CHECKING:  # actors need no pydantic: a quarter of a second each
    from pipeline.job.gates import Gates


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


def compare(reference: Arrays, candidate: Arrays, limits: AgreementLimits) -> Agreement:
    """Compare what two runs keep of the same rows, each array (N, ...)."""
    if LABEL_ID in reference:
        same = reference[LABEL_ID][:, 0] == candidate[LABEL_ID][:, 0]
        differences = np.abs(_plain(reference[SCORE])[:, 0] - _plain(candidate[SCORE])[:, 0])
        return Agreement(same & (differences <= limits.max_score_diff), _worst(differences, np.max))
    if EMBEDDING in reference:
        cosines = _cosines(_plain(reference[EMBEDDING]), _plain(candidate[EMBEDDING]))
        return Agreement(cosines >= limits.min_cosine, _worst(cosines, np.min))
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
