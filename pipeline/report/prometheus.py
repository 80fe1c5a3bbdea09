"""Export the figures of a run to Prometheus, with its own client: at a port, in a file."""

from __future__ import annotations

import logging
import threading
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

from pipeline.core.printable import clean_message
from pipeline.report.metric_families import LASTING, Family

log = logging.getLogger(__name__)

Families = Callable[[], Sequence[Family]]


class _Collector:
    """Gives a registry the metrics of the moment."""

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
        """Return nothing: the registry collects all metrics."""
        return []


def registry_of(families: Families) -> CollectorRegistry:
    """Return a registry of these metrics alone."""
    registry = CollectorRegistry()
    registry.register(_Collector(families))
    return registry


def as_text(families: Sequence[Family]) -> str:
    """Return the text format of Prometheus."""
    return generate_latest(registry_of(lambda: families)).decode()


class Port:
    """Answers scrapes while the run works; the last answer is of a moment before the end."""

    def __init__(self, host: str, port: int, families: Families) -> None:
        self._server, _ = start_http_server(port, host, registry_of(families))

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()


class Textfile(threading.Thread):
    """Replaces a file as a whole, every few seconds, for node_exporter's textfile collector.

    The run waits for it only at its end, and a limited time. Gauges that outlive runs keep the
    highest value that the file had.
    """

    def __init__(
        self,
        path: str,
        job: str,
        families: Families,
        *,
        every_s: float = 15.0,
        ends_within_s: float = 2.0,
    ) -> None:
        super().__init__(name="metrics textfile", daemon=True)
        self._path, self._job, self._families = Path(path), job, families
        self._every_s, self._ends_within_s = every_s, ends_within_s
        self._is_over, self._has_result = threading.Event(), False
        self._has_warned = False
        self._floor: dict[str, float] = {}

    def run(self) -> None:
        """Write until the run ends, and its result if it has one."""
        while not self._is_over.wait(self._every_s):
            self._try_to_write()
        if self._has_result:
            self._try_to_write()

    def end(self, *, has_result: bool) -> None:
        """Wait for the last write.

        Args:
            has_result: The run has a report to export; False: the file stays as it is.
        """
        self._has_result = has_result
        self._is_over.set()
        self.join(self._ends_within_s)
        if self.is_alive():
            self._warn(f"no end within {self._ends_within_s:g} s")

    def _try_to_write(self) -> None:
        try:
            self._write()
        except Exception as error:  # noqa: BLE001  # whatever a file system does
            self._warn(f"{type(error).__name__}: {error}")

    def _warn(self, why: str) -> None:
        """Warn once; further failures go to the debug log."""
        warn(
            f"metrics to {self._path}", why, logging.DEBUG if self._has_warned else logging.WARNING
        )
        self._has_warned = True

    def _write(self) -> None:
        if self._path.exists():  # a run of another date may have written meanwhile
            self._read(self._path.read_text())
        labels = {"job": self._job}
        now = [family.at_least(self._floor, labels) for family in self._families()]
        write_to_textfile(str(self._path), registry_of(lambda: now))

    def _read(self, text: str) -> None:
        lines = "".join(f"{line}\n" for line in text.splitlines() if line.startswith(LASTING))
        for metric in text_string_to_metric_families(lines):
            for sample in metric.samples:
                if sample.labels.get("job") == self._job:
                    before = self._floor.get(sample.name, sample.value)
                    self._floor[sample.name] = max(before, sample.value)


def warn(what: str, why: str, level: int = logging.WARNING) -> None:
    """Log that an export failed: the run neither fails nor waits."""
    log.log(level, "%s: %s; the run goes on without", what, clean_message(why))
