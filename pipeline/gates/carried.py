"""Gate on carried rows: a sample of them is predicted again, and must agree."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipeline.gates.gate import Figures, Gate, Need
from pipeline.gates.history import Past
from pipeline.gates.results import Finding
from pipeline.job.gates import Gates, Mode
from pipeline.models.agreement import AgreementLimits
from pipeline.models.tasks.base import Task

_SHOWN = 3


class Carried(Gate):
    """Rows that are taken over from earlier versions, and predicted again."""

    name = "carried"
    needs: frozenset[Need] = frozenset(["carried"])

    def mode(self, options: Gates) -> Mode:
        return options.carried_mode

    def judge(self, options: Gates, figures: Figures, past: Past) -> Finding:
        compared = figures.num_checked
        if not figures.num_carried and not compared:
            return Finding("off", "nothing was carried")
        if figures.is_retry:
            return Finding("off", "a retry keeps the predictions of its version")
        if not compared:
            why = f"none of {figures.num_carried} carried rows could be predicted again"
            return Finding("warn", why, None, 100.0)
        differing = figures.differing
        agreed = compared - len(differing)
        message = f"{agreed} of {compared} carried rows agree when they are predicted again"
        if differing:
            more = f"; and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
            message += (
                f"; not these: {'; '.join(differing[:_SHOWN])}{more}; with --no-reuse the next run "
                "predicts all rows"
            )
        share = 100.0 * agreed / compared
        return Finding("fail" if differing else "pass", message, share, 100.0)


def differing_rows(
    task: Task, row_ids: Sequence[str], known: pa.Table, found: pa.Table, limits: AgreementLimits
) -> list[str]:
    """Name the carried rows that differ when they are predicted again, each in a line.

    Args:
        row_ids: Of N rows; all of a run at once, as numbers are compared by their usual size.
        known: Their task columns in the version that they are carried from.
        found: Their task columns as they are predicted now.
    """
    said = task.differences(known, found, limits.with_ties())
    return [f"{row_id}: {each}" for row_id, each in zip(row_ids, said, strict=True) if each]


CARRIED = Carried()
