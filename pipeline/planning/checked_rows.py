"""Choose the carried rows that are predicted again, so that a wrong prediction is found.

Pure and fast, for a billion rows as for ten: it works on runs of rows and draws only what it keeps.
From each part of a source rows are drawn, at least one: the carried rows of the part are divided
into stretches of one length, the last may be shorter, and one row is drawn of each. So a part of
which n rows were to be drawn, and a share s of whose carried rows is wrong, is found with a
probability of at least 1 - (1 - s)^n; one that is wrong as a whole always. The same seed draws the
same rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.core.arrays import Numbers

LEAST_ROWS = 16
USUAL_SHARE, RAISED_SHARE = 0.001, 0.01
"""Of the carried rows; the second after a change of a library that decides predictions."""
_ROUNDING = 1e-6
_ENOUGH = 36
"""So many rows expected by chance are fewer than 16 once in ten thousand times."""


def choose_checked(
    runs: Numbers, *, parts: Sequence[Sequence[int]], seed: str, is_thorough: bool = False
) -> Numbers:
    """Choose carried rows to predict again: 0.1%, at least 16 and one of each part.

    Args:
        runs: int64 (K, 5), as `Carried.runs`.
        parts: Of each source the rows of its parts, in the order of the manifest.
        seed: Fingerprint of the whole plan, so that each run of it draws the same rows.
        is_thorough: 1% instead, after a change of a library that decides predictions.

    Returns:
        int64 (S, 2): source and prediction there, ascending, none twice.
    """
    stretches = {
        source: _Stretches.of(runs[runs[:, 2] == source, 3:])
        for source in np.unique(runs[:, 2]).tolist()
    }
    total = sum(each.num_rows for each in stretches.values())
    share = max(_share(is_thorough), min(1.0, LEAST_ROWS / max(1, total)))
    chosen = [np.zeros((0, 2), np.int64)]
    for source, each in stretches.items():
        random = np.random.default_rng([_number(seed), source])
        ordinals = each.draw(np.asarray(parts[source], np.int64), share, random)
        chosen.append(np.stack([np.full(len(ordinals), source), ordinals], axis=1))
    return np.concatenate(chosen)


def _share(is_thorough: bool) -> float:
    return RAISED_SHARE if is_thorough else USUAL_SHARE


def _number(seed: str) -> int:
    return int(seed[:16], 16)


class _Stretches:
    """Carried rows of one source, as stretches without overlap; a rank counts them in order."""

    def __init__(self, starts: Numbers, ends: Numbers) -> None:
        self._starts, self._ends = starts, ends
        self._ranks = np.concatenate([[0], np.cumsum(ends - starts)])
        """int64 (M + 1,): rows before each stretch, and all."""

    @classmethod
    def of(cls, runs: Numbers) -> _Stretches:
        """Merge runs, int64 (K, 2) of first row and length; what is carried twice counts once."""
        order = np.argsort(runs[:, 0])
        starts = runs[order, 0]
        ends = np.maximum.accumulate(starts + runs[order, 1])
        is_first = np.concatenate([[True], starts[1:] > ends[:-1]])[: len(starts)]
        is_last = np.concatenate([is_first[1:], [True]])[: len(starts)]
        return cls(starts[is_first], ends[is_last])

    @property
    def num_rows(self) -> int:
        return int(self._ranks[-1])

    def draw(self, part_rows: Numbers, share: float, random: np.random.Generator) -> Numbers:
        """Return int64 (S,) ascending: of each part that share of its carried rows, or one."""
        bounds = self._rank_of(np.concatenate([[0], np.cumsum(part_rows)]))
        carried = np.diff(bounds)
        least = np.maximum(
            1, np.minimum(np.ceil(share * carried - _ROUNDING).astype(np.int64), carried)
        )
        length = np.maximum(1, carried // least)
        drawn = -(-carried // length)
        part = np.repeat(np.arange(len(carried)), drawn)
        nth = np.arange(len(part)) - np.repeat(np.cumsum(drawn) - drawn, drawn)
        start = bounds[part] + nth * length[part]
        ranks = random.integers(start, np.minimum(start + length[part], bounds[part + 1]))
        within = np.searchsorted(self._ranks, ranks, "right") - 1
        return np.asarray(self._starts[within] + ranks - self._ranks[within], np.int64)

    def _rank_of(self, rows: Numbers) -> Numbers:
        """Return how many carried rows come before each row."""
        before = np.searchsorted(self._starts, rows, "right")
        last = np.maximum(before - 1, 0)
        inside = np.clip(rows - self._starts[last], 0, self._ends[last] - self._starts[last])
        return np.where(before > 0, self._ranks[last] + inside, 0)


def check_probability(num_rows: int, *, is_thorough: bool = False) -> float:
    """Return with which probability to check a row whose prediction is found while it is read.

    Such rows are drawn by their hashes: see `core.rows.drawn_rows`.

    Args:
        num_rows: About how many there will be; of few more are checked, so that 16 are.
        is_thorough: As for `choose_checked`.
    """
    return max(_share(is_thorough), min(1.0, _ENOUGH / max(1, num_rows)))
