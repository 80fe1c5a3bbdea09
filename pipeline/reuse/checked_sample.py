"""Draw a sample of known rows, which are predicted again, and compare both predictions.

At least one row of each part is drawn: the known rows of a part are divided into stretches of one
length (the last may be shorter), and one row of each is drawn. If n rows of a part are drawn and a
share s of its known rows is wrong, this is noticed with a probability of at least 1 - (1 - s)^n; a
part that is wrong as a whole is always noticed. The same seed draws the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.commit.staging import Checked
from pipeline.core.arrays import Numbers
from pipeline.core.errors import InfraError
from pipeline.core.failures import Reason
from pipeline.core.schema import ERROR, ROW_ID
from pipeline.models.agreement import AgreementLimits
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import TaskSpec

LEAST_ROWS = 16
_USUAL_SHARE, _RAISED_SHARE = 0.001, 0.01
"""Shares of the known rows; the second after a change of a library that decides predictions."""
_ENOUGH = 36
"""If so many rows are expected, fewer than 16 are drawn once in ten thousand times."""
_WORD_BYTES = 8
_OF_THE_MOMENT = [
    Reason.UNREADABLE_SHARD,
    Reason.MISSING,
    Reason.ACCESS_DENIED,
    Reason.UNREACHABLE,
    Reason.OUT_OF_MEMORY,
    Reason.TIMEOUT,
    Reason.NATIVE_CRASH,
]


def choose_checked(
    runs: Numbers, part_rows: Sequence[Sequence[int]], seed: str, *, is_thorough: bool
) -> Numbers:
    """Choose known rows to predict again: 0.1%, at least 16 and one of each part.

    Args:
        runs: What `known_runs` returned.
        part_rows: For each version, the rows of its parts; parts sorted by value count as one.
        seed: Fingerprint of the plan, so that each of its runs draws the same rows.
        is_thorough: 1% instead, after a change of a library that decides predictions.

    Returns:
        int64 (S, 2): unit and row, ascending.
    """
    share = max(_share(is_thorough), LEAST_ROWS / max(1, int(runs[:, 2].sum())))
    chosen = [np.zeros(0, np.int64)]  # numbers of known rows, counted over all runs
    before = np.cumsum(runs[:, 2]) - runs[:, 2]
    for version in np.unique(runs[:, 3]).tolist():
        version_runs = np.flatnonzero(runs[:, 3] == version)
        version_runs = version_runs[np.argsort(runs[version_runs, 4], kind="stable")]
        random = np.random.default_rng([int(seed[:16], 16), version])
        bounds = np.cumsum([0, *part_rows[version]])
        # A run may span several parts; ranks count the known rows of the version.
        ranks = np.cumsum(np.append(0, runs[version_runs, 2]))
        firsts = runs[version_runs, 4]
        at = np.searchsorted(firsts, bounds, "right") - 1
        inside = np.clip(bounds - firsts[at.clip(0)], 0, runs[version_runs, 2][at.clip(0)])
        cuts = np.where(at < 0, 0, ranks[at.clip(0)] + inside)
        for low, high in pairwise(cuts):
            drawn = _draw(int(low), int(high), share, random)
            run = np.searchsorted(ranks, drawn, "right") - 1
            chosen.append(before[version_runs[run]] + drawn - ranks[run])
    numbers = np.unique(np.concatenate(chosen))
    run = np.searchsorted(before, numbers, "right") - 1
    return np.stack([runs[run, 0], runs[run, 1] + numbers - before[run]], axis=1)


def _draw(low: int, high: int, share: float, random: np.random.Generator) -> Numbers:
    """Return a share of the numbers [low, high): at least one if there are any."""
    if high <= low:
        return np.zeros(0, np.int64)
    number = max(1, min(high - low, int(np.ceil(share * (high - low) - 1e-6))))
    length = max(1, (high - low) // number)
    starts = np.arange(low, high, length)
    return np.asarray(random.integers(starts, np.minimum(starts + length, high)), np.int64)


def check_probability(num_rows: int, *, is_thorough: bool) -> float:
    """Return the probability of checking a row that is looked up by its content.

    Args:
        num_rows: About how many such rows there will be; if few, a larger share is checked.
        is_thorough: As for `choose_checked`.
    """
    return max(_share(is_thorough), min(1.0, _ENOUGH / max(1, num_rows)))


def are_drawn(
    hashes: npt.NDArray[np.uint8], probability: float, seed: str
) -> npt.NDArray[np.bool_]:
    """Draw rows by their hashes: all equal rows or none; another seed draws other rows.

    Args:
        hashes: uint8 (N, 16).
        probability: The probability of each row, from 0 to 1.
        seed: As for `choose_checked`.

    Returns:
        bool (N,).
    """
    if probability >= 1.0:
        return np.ones(len(hashes), bool)
    words = np.ascontiguousarray(hashes[:, -_WORD_BYTES:]).view("<u8").reshape(-1)
    mixed = (words ^ np.uint64(int(seed[:16], 16))) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return (mixed ^ (mixed >> np.uint64(32))) < np.uint64(int(probability * 2**64))


class TooFewChecked(InfraError):
    """Too few of the rows known by content were drawn; their slices are deleted."""

    def __init__(self, num_known: int, probability: float) -> None:
        super().__init__(
            f"too few of {num_known} rows known by their content were checked; run again"
        )
        self.probability = probability
        """The probability to check them with instead."""


def raised_probability(num_known: int, num_checked: int) -> float:
    """Return the probability with which known rows should have been checked; 0: enough were.

    Args:
        num_known: All known rows; if fewer than 32, all are to be checked.
        num_checked: Those that were checked.
    """
    wanted = LEAST_ROWS if num_known >= 2 * LEAST_ROWS else num_known
    return 0.0 if num_checked >= wanted else min(1.0, 2 * _ENOUGH / num_known)


def _share(is_thorough: bool) -> float:
    return _RAISED_SHARE if is_thorough else _USUAL_SHARE


@dataclass(frozen=True)
class Checker:
    """Compares known rows with the same rows computed again; can be pickled."""

    task: TaskSpec
    limits: AgreementLimits

    def __call__(self, known: pa.Table, computed: pa.Table, others: pa.Table) -> Checked:
        """Compare N staged rows.

        Rows that failed now for a reason that may be temporary are not compared.

        Args:
            known: The rows of an earlier version.
            computed: The same rows computed now.
            others: More known rows of the slice, which tell the usual size of numbers.
        """
        task = make_task(self.task)
        errors = computed.column(ERROR)
        is_good, is_of_moment = pc.is_null(errors), pc.is_in(errors, pa.array(_OF_THE_MOMENT))
        lost = computed.filter(pc.invert(pc.or_(is_good, is_of_moment))).select([ROW_ID, ERROR])
        lines = [f"{row[ROW_ID]}: is in quarantine now: {row[ERROR]}" for row in lost.to_pylist()]
        columns = [field.name for field in task.fields()]
        known, recomputed = known.filter(is_good), computed.filter(is_good)
        ids = recomputed.column(ROW_ID).to_pylist()
        others = others.filter(pc.is_null(others.column(ERROR))).select(columns)
        before, now = (
            pa.concat_tables([rows.select(columns).cast(others.schema), others])
            for rows in (known, recomputed)
        )
        differences = task.differences(before, now, self.limits.with_ties())[: len(ids)]
        lines += [f"{i}: {text}" for i, text in zip(ids, differences, strict=True) if text]
        return Checked(len(ids) + lost.num_rows, lines)
