"""How the partitions of an output are: as a value, as tables, as text for Prometheus."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, get_args

from pipeline.process.screen import as_lines
from pipeline.report.showing.progress import duration
from pipeline.runs.weeks.state import PartitionStatus, State


@dataclass(frozen=True)
class Status:
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

    @classmethod
    def of(cls, document: dict[str, Any]) -> Status:
        """Return the value whose `to_dict` a document is."""
        rows = (PartitionStatus(**row) for row in document["partitions"])
        return cls(document["sink"], tuple(rows))

    def shown(self) -> dict[str, Any]:
        """Return what a terminal has room for."""
        return {"states": self.count(), "partitions": [*map(_row, self.partitions)]}

    def __str__(self) -> str:
        """Return the tables, without styles."""
        from pipeline.report.showing.document_table import render_document

        return as_lines(render_document(self.shown())).rstrip("\n")

    def to_prometheus(self) -> str:
        """Return the text that Prometheus' node exporter reads from a file; no partition is named.

        `absent_over_time` and the two times tell that the night did not run, whatever runs then.
        """
        labels = f'job="{_escaped(self._name())}"'
        lines = _head("pipeline_partitions", "Partitions by state.")
        states = self.count()
        for state in get_args(State):
            lines.append(f'pipeline_partitions{{{labels},state="{state}"}} {states.get(state, 0)}')
        published = [time for each in self.partitions if (time := _time(each.published_at))]
        days = [day for each in self.partitions if each.version and (day := _day(each.partition))]
        for name, text, times in (
            ("last_success", "When a version was published last.", published),
            ("last_partition", "The last date that has a version.", days),
        ):
            if times:
                metric = f"pipeline_{name}_timestamp_seconds"
                lines += _head(metric, text)
                lines.append(f"{metric}{{{labels}}} {max(times).timestamp():.0f}")
        return "\n".join(lines) + "\n"

    def _name(self) -> str:
        """Return the name of the job that ran last, or that of the output's folder."""
        named = [each for each in self.partitions if each.job and each.run_id]
        last = max(named, key=lambda each: each.run_id or "", default=None)
        return (last.job if last else None) or self.sink.rstrip("/").rpartition("/")[2]


def _row(each: PartitionStatus) -> dict[str, Any]:
    since = f"since {each.started_at}" if each.state == "running" and each.started_at else ""
    left = "" if each.eta_s is None else f"{duration(each.eta_s)} left"
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
        "attempt": each.attempt if (each.attempt or 1) > 1 else None,
        "a_run_would": each.a_run_would,
    }


def _head(metric: str, text: str) -> list[str]:
    return [f"# HELP {metric} {text}", f"# TYPE {metric} gauge"]


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _time(text: str | None) -> dt.datetime | None:
    return next(_times(text or ""), None)


def _day(partition: str) -> dt.datetime | None:
    return next(_times(partition.partition("=")[2]), None)


def _times(text: str) -> Iterator[dt.datetime]:
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        return
    yield found if found.tzinfo else found.replace(tzinfo=dt.UTC)
