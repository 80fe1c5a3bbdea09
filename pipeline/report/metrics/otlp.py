"""Export the figures of a run by OTLP over HTTP, as OpenTelemetry's own variables say.

The SDK collects when it is asked: its own threads, warnings and exit handlers are not used.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExportResult, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from pipeline.report.metrics.families import Family

_UNITS = {"seconds": "s", "bytes": "By", "ratio": "1"}
_CLOSES_WITHIN_MS = 1000.0


class _Exporter(OTLPMetricExporter):  # type: ignore[misc]  # not followed
    """Remembers whether the last export got there: the reader that calls it does not say."""

    has_delivered = False

    def export(self, *args: Any, **options: Any) -> MetricExportResult:
        result = super().export(*args, **options)
        self.has_delivered = result is MetricExportResult.SUCCESS
        return result


class Otlp:
    """Sends all metrics at each update; the service is the job, unless the environment names it."""

    def __init__(self, job: str, families: Callable[[], Sequence[Family]]) -> None:
        for name in ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
            protocol = os.environ.get(name)
            if protocol not in (None, "", "http/protobuf"):
                raise ValueError(f"{name}={protocol}: only http/protobuf is there")
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # one warning is enough
        self._families, self._now = families, dict[str, Family]()
        self._exporter = _Exporter()
        self._reader = PeriodicExportingMetricReader(
            self._exporter, export_interval_millis=math.inf
        )
        named = os.environ.get("OTEL_SERVICE_NAME")
        resource = Resource.create({} if named else {"service.name": job})
        self._provider = MeterProvider([self._reader], resource, shutdown_on_exit=False)
        meter = self._provider.get_meter("pipeline")
        for family in families():
            make = meter.create_observable_gauge
            if family.kind == "counter":
                make = meter.create_observable_counter
            unit = _UNITS.get(family.name.rpartition("_")[2], "")
            make(family.name, [partial(self._observe, family.name)], unit, family.text)

    def update(self) -> None:
        self._now = {family.name: family for family in self._families()}
        self._reader.collect()
        if not self._exporter.has_delivered:
            raise ConnectionError("the collector did not take them")

    def close(self) -> None:
        self._provider.shutdown(_CLOSES_WITHIN_MS)

    def _observe(self, name: str, _: CallbackOptions) -> Iterable[Observation]:
        family = self._now.get(name)
        samples = family.samples if family else ()
        return [Observation(value, dict(labels)) for labels, value in samples]
