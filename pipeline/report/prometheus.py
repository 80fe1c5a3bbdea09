"""Export the figures of a run to Prometheus, by its own client: a port or a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    generate_latest,
    start_http_server,
    write_to_textfile,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from pipeline.report.metric_families import LASTING, Family

Families = Callable[[], Sequence[Family]]


class _Collector:
    """Gives a registry the metrics as they are when it is asked."""

    def __init__(self, families: Families) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families():
            metric_class = (
                CounterMetricFamily if family.metric_type == "counter" else GaugeMetricFamily
            )
            names = list(family.samples[0][0]) if family.samples else ["job"]
            metric = metric_class(family.name, family.text, labels=names)
            for labels, value in family.samples:
                metric.add_metric(list(labels.values()), value)
            yield metric

    def describe(self) -> list[Metric]:
        """Name nothing beforehand: the registry is asked for all of it."""
        return []


def registry_of(families: Families) -> CollectorRegistry:
    """Return a registry with nothing but these metrics."""
    registry = CollectorRegistry()
    registry.register(_Collector(families))
    return registry


def as_text(families: Sequence[Family]) -> str:
    """Return the text format of Prometheus."""
    return generate_latest(registry_of(lambda: families)).decode()


class Port:
    """Answers scrapes while the run works; what it says last is of a moment before the end."""

    def __init__(self, host: str, port: int, families: Families) -> None:
        self._server, _ = start_http_server(port, host, registry_of(families))

    def update(self) -> None:
        """Do nothing: scrapes ask by themselves."""

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Textfile:
    """Replaces a file as a whole, for node_exporter's textfile collector.

    Gauges that outlive runs stay at what they were, if that is higher.
    """

    def __init__(self, path: str, job: str, families: Families) -> None:
        self._path, self._job, self._families = Path(path), job, families
        self._floor: dict[str, float] = {}

    def update(self) -> None:
        if self._path.exists():  # written meanwhile by a run of another date, too
            self._read(self._path.read_text())
        labels = {"job": self._job}
        now = [family.at_least(self._floor, labels) for family in self._families()]
        write_to_textfile(str(self._path), registry_of(lambda: now))

    def close(self) -> None:
        """Do nothing: no file is open."""

    def _read(self, text: str) -> None:
        lines = "".join(f"{line}\n" for line in text.splitlines() if line.startswith(LASTING))
        for metric in text_string_to_metric_families(lines):
            for sample in metric.samples:
                if sample.labels.get("job") == self._job:
                    before = self._floor.get(sample.name, sample.value)
                    self._floor[sample.name] = max(before, sample.value)
