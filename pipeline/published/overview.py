"""How the partitions of an output are: as a value, as tables, as text for Prometheus."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, get_args

from pipeline.published.state import PartitionStatus, State
from pipeline.report.showing.blocks import duration
from pipeline.report.showing.printed import Printed


@dataclass(frozen=True)
class Status(Printed):
    """The partitions of an output, by date or number."""

    sink: str
    partitions: tuple[PartitionStatus, ...]

    def count(self) -> dict[str, int]:
        """Return how many partitions are in which state, without those that none is in."""
        return dict(Counter(status.state for status in self.partitions))

    def to_dict(self) -> dict[str, Any]:
        """Return the form of `--json`."""
        rows = [asdict(status) for status in self.partitions]
        return {"sink": self.sink, "states": self.count(), "partitions": rows}

    def shown(self) -> dict[str, Any]:
        """Return what a terminal has room for."""
        return {"states": self.count(), "partitions": [*map(_row, self.partitions)]}

    def to_prometheus(self) -> str:
        """Return the text that Prometheus' node exporter reads from a file; no partition is named.

        `absent_over_time` and the two times tell that the night did not run, whatever runs then.
        """
        from pipeline.report.metric_families import Maker, day_of, instant
        from pipeline.report.prometheus import as_text

        made, states = Maker(self._name()), self.count()
        made.gauge(
            "partitions", "state", {state: states.get(state, 0) for state in get_args(State)}
        )
        published = filter(None, (instant(status.published_at) for status in self.partitions))
        days = filter(
            None, (day_of(status.partition) for status in self.partitions if status.version)
        )
        made.one("last_success_timestamp_seconds", max(published, default=None))
        made.one("last_partition_timestamp_seconds", max(days, default=None))
        return as_text(made.families)

    def _name(self) -> str:
        """Return the name of the job that ran last, or that of the output's folder."""
        named = [status for status in self.partitions if status.job and status.run_id]
        last = max(named, key=lambda status: status.run_id or "", default=None)
        return (last.job if last else None) or self.sink.rstrip("/").rpartition("/")[2]


def _row(status: PartitionStatus) -> dict[str, Any]:
    since = f"since {status.started_at}" if status.state == "running" and status.started_at else ""
    left = "" if status.eta_s is None else f"{duration(status.eta_s)} left"
    would = status.a_run_would
    if would and status.why:
        would = would.removesuffix(f": {status.why}")
    why = ", ".join(filter(None, [status.why, since, left]))
    return {
        "partition": status.partition,
        "state": status.state.replace("_", " "),
        "why": why or None,
        "version": status.version,
        "rows": status.rows,
        "quarantined": status.quarantined,
        "carried": status.carried or None,
        "took": None if status.duration_s is None else duration(status.duration_s),
        "cost": None if status.cost is None else f"{status.cost:,.2f}",
        "attempt": status.attempt if (status.attempt or 1) > 1 else None,
        "a_run_would": would,
    }
