"""Compare what a disturbed run published with what an undisturbed one did, row by row. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.schema import ROW_ID
from pipeline.models.agreement import AgreementLimits
from pipeline.models.tasks.base import Task

_QUARANTINED = "reason"


@dataclass(frozen=True)
class Published:
    """What a run has published."""

    predictions: pa.Table
    quarantine: pa.Table

    def fates(self) -> dict[str, Counter[str]]:
        """Return what became of each row id: how often predicted, or quarantined for a reason."""
        found: dict[str, Counter[str]] = {}
        for row_id in self.predictions.column(ROW_ID).to_pylist():
            found.setdefault(row_id, Counter())[""] += 1
        rows = (self.quarantine.column(name).to_pylist() for name in (ROW_ID, _QUARANTINED))
        for row_id, reason in zip(*rows, strict=True):
            found.setdefault(row_id, Counter())[reason] += 1
        return found


@dataclass(frozen=True)
class Difference:
    """Row ids that differ."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


def compare_published(
    reference: Published,
    found: Published,
    passed: Collection[str],
    limits: AgreementLimits,
    task: Task,
) -> Difference:
    """Return which rows were lost, came twice, or ended otherwise than in the reference.

    Args:
        reference: What is right.
        found: What is judged.
        passed: Names of the pass-through columns, which must be equal.
        limits: How far numbers that the model made may be off: batches of another size, as after a
            crash, give slightly other ones.
        task: How two predictions of a row agree.
    """
    expected, fates = reference.fates(), found.fates()
    lost, doubled, changed = list[str](), list[str](), list[str]()
    for row_id in {**expected, **fates}:
        before, now = (each.get(row_id, Counter()) for each in (expected, fates))
        surplus = now.total() - before.total()
        lost += [row_id] * -surplus
        doubled += [row_id] * surplus
        changed += [row_id] if surplus == 0 and now != before else []
    named = {*lost, *doubled, *changed}
    others = _other_values(reference.predictions, found.predictions, passed, limits, task)
    changed += [row_id for row_id in others if row_id not in named]
    return Difference(lost, doubled, changed)


def _other_values(
    reference: pa.Table,
    found: pa.Table,
    passed: Collection[str],
    limits: AgreementLimits,
    task: Task,
) -> list[str]:
    """Return the ids of the rows that both have and whose values differ."""
    positions = pc.index_in(
        reference.column(ROW_ID), value_set=found.column(ROW_ID).combine_chunks()
    )
    before = reference.filter(positions.is_valid())
    now = found.take(positions.drop_null())
    ids = [str(value) for value in before.column(ROW_ID).to_pylist()]
    if before.schema != now.schema:
        return ids
    judged = [field.name for field in task.fields() if field.name not in passed]
    said = task.differences(before.select(judged), now.select(judged), limits)
    differs = np.array([bool(each) for each in said], bool)
    for name in [name for name in before.column_names if name not in judged]:
        values = zip(*(each.column(name).to_pylist() for each in (before, now)), strict=True)
        differs |= np.array([not _same(a, b) for a, b in values], bool)
    return [row_id for row_id, is_other in zip(ids, differs.tolist(), strict=True) if is_other]


def _same(a: Any, b: Any) -> bool:
    return bool(a == b or (a != a and b != b))  # NaN, in a pass-through column


def not_quarantined(spoilt: Collection[str], found: Published) -> list[str]:
    """Return the spoilt rows that are not in quarantine, each once, and nowhere else."""
    fates = found.fates()
    whole = {row_id for row_id, fate in fates.items() if fate.total() == 1 and not fate[""]}
    return [row_id for row_id in spoilt if row_id not in whole]
