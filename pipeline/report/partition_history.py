"""Partition after partition: rows, speed, errors, and what seconds and money were spent on.

In: reports of runs. Out: one `PartitionWork` per version, all runs that it took together. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from itertools import groupby
from typing import Any

from pipeline.commit.layout import partition_order
from pipeline.report.document import Report
from pipeline.report.showing.number_format import format_duration
from pipeline.report.showing.printed import Printed
from pipeline.report.speed.limits import CORES

_ONCE = ("list", "publish")
"""Stages before and after the stream, on the driver."""


@dataclass(frozen=True)
class Spent:
    """Seconds of the runs, or what they cost; `useful` to `repeated` add up to `total`."""

    total: float = 0.0
    useful: float = 0.0
    """The busiest group of stages worked; listing and publishing included."""
    idle: float = 0.0
    """No stage was busy, or which one was is unknown."""
    startup: float = 0.0
    """Ray started, models were loaded and compiled."""
    repeated: float = 0.0
    """Rows were computed whose predictions were there, or came to nothing: carried rows that are
    checked, and rows of earlier runs that the one which published did not take over."""
    saved: float = 0.0
    """What carried rows would have taken besides, by the speed of this run or the last one."""

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def times(self, factor: float) -> Spent:
        """Return all of it multiplied."""
        return Spent(*(value * factor for value in astuple(self)))


@dataclass(frozen=True)
class PartitionWork:
    """The runs that led to one version of a partition, or to none yet; what is unknown is None."""

    partition: str
    run_id: str
    """Of the last of them, which also gives the figures that are of one run."""
    status: str
    started_at: str | None
    runs: int
    rows: int | None
    errors_pct: float | None
    """Quarantined rows."""
    carried_pct: float | None
    """Rows whose predictions are those of earlier versions."""
    rows_per_s: float | None
    """While streaming."""
    stages: dict[str, float]
    """Stage -> rows/s per slot while busy, as far as it was measured."""
    seconds: Spent
    cost: Spent | None
    """In the currency of `run.price_per_node_hour`; None if a run knew no price."""


@dataclass(frozen=True)
class History(Printed):
    """The versions of an output, by partition and run."""

    sink: str
    versions: tuple[PartitionWork, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the form of `--json`."""
        return {"sink": self.sink, "versions": [asdict(each) for each in self.versions]}

    def shown(self) -> dict[str, Any]:
        """Return what a terminal has room for."""
        stages = [
            {"partition": each.partition, **{name: round(x) for name, x in each.stages.items()}}
            for each in self.versions
            if each.stages
        ]
        return {
            "partitions": [*map(_row, self.versions)],
            "time": [_spent(each, each.seconds, format_duration) for each in self.versions],
            "cost": [_spent(each, each.cost, _money) for each in self.versions if each.cost],
            "rows_per_s_of_a_busy_slot": stages,
        }


def versions_of(
    reports: Iterable[Report], price_per_node_hour: float | None = None
) -> list[PartitionWork]:
    """Put the runs together that worked on the same version, by partition and run.

    Args:
        reports: Of runs that did something, in any order.
        price_per_node_hour: For reports that have none.
    """
    found: list[PartitionWork] = []
    row_s: float | None = None
    for partition, runs in groupby(sorted(reports, key=_order), key=lambda run: run.partition):
        for group in _up_to_published([*runs]):
            last = group[-1]
            lost = _lost_rows(group)
            spent = [_seconds(run, lost.get(run.run_id, 0)) for run in group]
            seconds = sum(spent, Spent())
            row_s = _row_s(last, spent[-1]) or row_s
            saved_s = (last.rows.carried or 0) * (row_s or 0.0)
            seconds = replace(seconds, saved=saved_s)
            rows = last.rows
            found.append(
                PartitionWork(
                    partition=partition,
                    run_id=last.run_id,
                    status=last.status,
                    started_at=group[0].started_at,
                    runs=len(group),
                    rows=rows.total,
                    errors_pct=_pct(rows.quarantined, rows.total),
                    carried_pct=_pct(rows.carried, rows.total),
                    rows_per_s=last.rows_per_s,
                    stages={
                        each.stage: each.rows_per_busy_slot_s
                        for each in last.stages
                        if each.rows_per_busy_slot_s
                    },
                    seconds=seconds,
                    cost=_cost(group, spent, seconds, price_per_node_hour),
                )
            )
    return found


def _order(report: Report) -> tuple[Any, str]:
    return partition_order(report.partition), report.run_id


def _up_to_published(runs: Sequence[Report]) -> Iterable[list[Report]]:
    """Divide the runs of a partition: each group but the last one ends with a published version."""
    group: list[Report] = []
    for run in runs:
        group.append(run)
        if run.status == "published":
            yield group
            group = []
    if group:
        yield group


def _lost_rows(group: Sequence[Report]) -> dict[str, int]:
    """Return how many rows of each run came to nothing, as the published run did not take them."""
    *before, last = group
    if last.status != "published":
        return {}
    kept, lost = last.rows.resumed or 0, {}
    for run in reversed(before):  # what is taken over is counted as that of the newest runs
        computed = run.rows.computed or 0
        taken = min(kept, computed) if run.fingerprint == last.fingerprint else 0
        kept -= taken
        lost[run.run_id] = computed - taken
    return lost


def _seconds(report: Report, num_lost: int) -> Spent:
    """Divide the wall time of a run."""
    total_s = report.wall_s or 0.0
    startup_s = min(total_s, sum(part.wall_s or 0.0 for part in report.startup))
    groups = [limit.utilisation_pct for limit in report.limits if limit.group != CORES]
    busy_s = (report.streaming_wall_s or 0.0) * min(100.0, max(groups, default=0.0)) / 100
    busy_s += sum(stage.busy_s or 0.0 for stage in report.stages if stage.stage in _ONCE)
    busy_s = min(busy_s, total_s - startup_s)
    num_checked = report.carried.checked_rows if report.carried else 0
    again = min(1.0, (num_lost + num_checked) / (report.rows.computed or 1))
    return Spent(
        total=total_s,
        useful=busy_s * (1 - again),
        idle=max(0.0, total_s - startup_s - busy_s),
        startup=startup_s,
        repeated=busy_s * again,
    )


def _row_s(report: Report, spent: Spent) -> float | None:
    """Return the seconds that a computed row took; None if none was computed."""
    rows = report.rows.computed
    return (spent.useful + spent.repeated) / rows if rows else None


def _cost(
    runs: Sequence[Report], spent: Sequence[Spent], seconds: Spent, price: float | None
) -> Spent | None:
    prices = [run.price_per_node_hour or price for run in runs]
    rates = [
        None if each is None or run.hardware.nodes is None else each * run.hardware.nodes / 3600
        for each, run in zip(prices, runs, strict=True)
    ]
    if None in rates:
        return None
    known = [rate for rate in rates if rate is not None]
    own = sum((each.times(rate) for each, rate in zip(spent, known, strict=True)), Spent())
    return replace(own, saved=seconds.saved * known[-1])


def _pct(part: int | None, whole: int | None) -> float | None:
    return 100 * part / whole if part is not None and whole else None


def _row(each: PartitionWork) -> dict[str, Any]:
    return {
        "partition": each.partition,
        "status": each.status,
        "runs": each.runs,
        "rows": each.rows,
        "errors_%": each.errors_pct,
        "carried_%": each.carried_pct or None,
        "rows/s": None if each.rows_per_s is None else float(f"{each.rows_per_s:.4g}"),
    }


def _spent(each: PartitionWork, spent: Spent | None, told: Any) -> dict[str, Any]:
    values = astuple(spent or Spent())
    shown = {
        field.name.replace("startup", "start-up"): told(value) if value else None
        for field, value in zip(fields(Spent), values, strict=True)
    }
    return {"partition": each.partition, **shown}


def _money(value: float) -> str:
    return f"{value:,.4g}"
