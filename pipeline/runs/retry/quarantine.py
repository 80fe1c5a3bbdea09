"""Read the quarantine of a published version, and choose the rows that are retried, by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest, Part
from pipeline.commit.parts.part_reader import open_part
from pipeline.commit.parts.row_positions import Positions, read_positions
from pipeline.commit.plan_store import plan_from_json
from pipeline.core.arrays import Numbers
from pipeline.core.errors import InfraError, JobError
from pipeline.core.failures import Reason
from pipeline.planning.plan import Plan
from pipeline.storage.store import Store

REASONS = tuple(reason.value for reason in Reason)
RETRIED = tuple(reason.value for reason in Reason if reason is not Reason.DUPLICATE_ID)
"""Reasons whose rows may be retried. Of rows with one id only the first is ever predicted."""
_PART_THREADS = 8


@dataclass(frozen=True)
class Base:
    """A published version with what is needed to merge rows into it."""

    manifest: Manifest
    plan: Plan
    """Of the run that published it first."""
    accounts: Plan
    """Of all rows that it has: shards that became readable since are there with their rows."""
    positions: Positions
    """Of the N quarantined rows, in input order."""
    reasons: npt.NDArray[np.uint8]
    """uint8 (N,), why each is there: indices of `REASONS`."""

    def counts(self, entries: Numbers | None = None) -> Counter[str]:
        """Count rows of the quarantine by reason: those of `entries`, int64 (M,), or all."""
        found = self.reasons if entries is None else self.reasons[entries]
        counts = np.bincount(found, minlength=len(REASONS)).tolist()
        return Counter({reason: n for reason, n in zip(REASONS, counts, strict=True) if n})

    def is_there_for(self, *reasons: str) -> npt.NDArray[np.bool_]:
        """(N,) tell which rows are there for one of these reasons."""
        return np.isin(self.reasons, [REASONS.index(reason) for reason in reasons])

    @cached_property
    def predicted_before(self) -> Numbers:
        """int64 (N,): how many predictions lie before each quarantined row."""
        return self.positions.ranks - np.arange(len(self.positions))


@dataclass(frozen=True)
class Selection:
    """Quarantined rows that are to be retried, and why the others are not."""

    entries: Numbers
    """Which rows of the quarantine, ascending."""
    not_asked: int = 0
    """Rows with other reasons than were asked for."""
    duplicates: int = 0
    changed: int = 0
    """Rows of inputs that are no longer what was planned."""
    shards: tuple[str, ...] = field(default=())
    """Some of those inputs."""

    def describe_others(self) -> str:
        """Say in a few words what stays in the quarantine untouched; empty for nothing."""
        parts = []
        if self.changed:
            parts.append(
                f"{self.changed} of inputs that are gone, changed, or beyond run.limit_rows "
                f"({', '.join(self.shards)}; `pipeline run` reads them anew)"
            )
        if self.duplicates:
            parts.append(f"{self.duplicates} because of their ids, which others have")
        if self.not_asked:
            parts.append(f"{self.not_asked} with other reasons than --reason")
        return ", ".join(parts)


def read_reasons(given: Sequence[str]) -> frozenset[str]:
    """Check the reasons that a command names; none means all.

    Raises:
        JobError: There is no such reason, or its rows are never retried.
    """
    for name in given:
        if name not in RETRIED:
            is_known = name in REASONS
            why = "only the first row of an id is predicted" if is_known else "no such reason"
            raise JobError(f"--reason {name}: {why}; allowed are {', '.join(RETRIED)}")
    return frozenset(given or RETRIED)


def read_base(store: Store, layout: Layout, manifest: Manifest) -> Base:
    """Read of the published version what the quarantine says of its rows.

    Raises:
        JobError: It was published before the positions of rows were kept.
    """
    with ThreadPoolExecutor(_PART_THREADS) as pool:
        found = list(pool.map(lambda p: _read_part(store, p), manifest.quarantine_parts))
    plan = read_plan(store, layout, manifest.fingerprint)
    return Base(
        manifest,
        plan,
        read_plan(store, layout, manifest.plan) if manifest.plan else plan,
        Positions.joined(positions for positions, _ in found),
        np.concatenate([np.zeros(0, np.uint8), *(reasons for _, reasons in found)]),
    )


def read_plan(store: Store, layout: Layout, fingerprint: str) -> Plan:
    """Read a stored plan.

    Raises:
        InfraError: It is missing or damaged.
    """
    path = layout.plan(fingerprint)
    try:
        return plan_from_json(store.read_bytes(path), fingerprint)
    except FileNotFoundError:
        raise InfraError(f"{store.url(path)}: is missing, so the rows are unknown") from None


def _read_part(store: Store, part: Part) -> tuple[Positions, npt.NDArray[np.uint8]]:
    with open_part(store, part.path) as file:
        reasons = pc.index_in(file.read(columns=["reason"]).column(0), pa.array(REASONS))
        positions = read_positions(file.metadata.metadata, part.num_rows, part.path)
    if reasons.null_count:
        raise JobError(f"{part.path}: written by a newer version; upgrade this one")
    return positions, np.asarray(reasons).astype(np.uint8)


def select_entries(base: Base, reasons: frozenset[str]) -> Selection:
    """Choose the rows of the quarantine that are there for one of these reasons."""
    is_asked = base.is_there_for(*reasons)
    duplicates = int(base.is_there_for(Reason.DUPLICATE_ID.value).sum())
    num_asked = int(is_asked.sum())
    return Selection(np.flatnonzero(is_asked), len(is_asked) - num_asked - duplicates, duplicates)
