"""How the partitions of an output are: as a value, as tables, as text for Prometheus."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, get_args

from pipeline.report.showing.printed import Printed
from pipeline.runs.exports import folder_name
from pipeline.runs.partitions.state import PartitionStatus, State
from pipeline.runs.progress import duration


@dataclass(frozen=True)
class Status(Printed):
    """The partitions of an output, by date or number."""

    sink: str
    partitions: tuple[PartitionStatus, ...]

    def count(self) -> dict[str, int]:
        """Return how many partitions are in which state, without those that none is in."""
        return dict(Counter(each.state for each in self.partitions))

    def to_dict(self) -> dict[str, Any]:
        """Return the form of `--json`."""
        rows = [asdict(each) for each in self.partitions]
        return {"sink": self.sink, "states": self.count(), "partitions": rows}

    def shown(self) -> dict[str, Any]:
        """Return what a terminal has room for."""
        return {"states": self.count(), "partitions": [*map(_row, self.partitions)]}

    def to_prometheus(self) -> str:
        """Return the text that Prometheus' node exporter reads from a file; no partition is named.

        `absent_over_time` and the two times tell that the night did not run, whatever runs then.
        """
        from pipeline.report.metrics.families import Maker, day_of, instant
        from pipeline.report.metrics.prometheus import as_text

        made, states = Maker(self._name()), self.count()
        made.gauge(
            "partitions", "state", {state: states.get(state, 0) for state in get_args(State)}
        )
        published = filter(None, (instant(each.published_at) for each in self.partitions))
        days = filter(None, (day_of(each.partition) for each in self.partitions if each.version))
        made.one("last_success_timestamp_seconds", max(published, default=None))
        made.one("last_partition_timestamp_seconds", max(days, default=None))
        return as_text(made.families)

    def _name(self) -> str:
        """Return the name of the job that ran last, or that of the output's folder."""
        named = [each for each in self.partitions if each.job and each.run_id]
        last = max(named, key=lambda each: each.run_id or "", default=None)
        return (last.job if last else None) or folder_name(self.sink)


def _row(each: PartitionStatus) -> dict[str, Any]:
    since = f"since {each.started_at}" if each.state == "running" and each.started_at else ""
    left = "" if each.eta_s is None else f"{duration(each.eta_s)} left"
    would = each.a_run_would
    if would and each.why:
        would = would.removesuffix(f": {each.why}")
    why = ", ".join(filter(None, [each.why, since, left]))
    return {
        "partition": each.partition,
        "state": each.state.replace("_", " "),
        "why": why or None,
        "version": each.version,
        "rows": each.rows,
        "quarantined": each.quarantined,
        "carried": each.carried or None,
        "took": None if each.duration_s is None else duration(each.duration_s),
        "cost": None if each.cost is None else f"{each.cost:,.2f}",
        "attempt": each.attempt if (each.attempt or 1) > 1 else None,
        "a_run_would": would,
    }
