"""Say to OpenLineage what a run reads and writes, when it begins and how it has ended.

The transport (a file, HTTP, ...) is what the client's own variables or configuration file say.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import uuid
from typing import Any

from openlineage.client import OpenLineageClient
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import (
    data_quality_assertions_dataset,
    dataset_version_dataset,
    error_message_run,
    input_statistics_input_dataset,
    job_type_job,
    nominal_time_run,
    output_statistics_output_dataset,
    processing_engine_run,
    schema_dataset,
    set_producer,
)

from pipeline.report.document import Report
from pipeline.report.metrics.families import day_of
from pipeline.report.metrics.figures import RunFigures
from pipeline.report.sections import Gate

_PRODUCER = "https://pypi.org/project/batch-inference-pipeline"
_ENDS = {
    "published": RunState.COMPLETE,
    "nothing_to_do": RunState.COMPLETE,
    "stopped": RunState.ABORT,
}
_CLOSES_WITHIN_S = 1.0


class Lineage:
    """Emits START once the plan is known, and COMPLETE, FAIL or ABORT at the end."""

    def __init__(self, figures: RunFigures, source: str, predictions: str) -> None:
        """Connect as the environment says.

        Args:
            source: What it reads; a path or URI.
            predictions: What it writes; likewise.
        """
        for name in ("openlineage", "urllib3"):  # one warning is enough
            logging.getLogger(name).setLevel(logging.CRITICAL)
        set_producer(_PRODUCER)
        self._client = OpenLineageClient()
        self._figures, self._source, self._predictions = figures, source, predictions
        self._has_started = False

    def update(self) -> None:
        report, record = self._figures.final, self._figures.record
        if not self._has_started and (record.plan is not None or report is not None):
            self._has_started = True
            self._client.emit(self._event(RunState.START, record.started_at, None))
        if report is not None:
            state = _ENDS.get(report.status, RunState.FAIL)
            self._client.emit(self._event(state, dt.datetime.now(dt.UTC), report))

    def close(self) -> None:
        self._client.close(_CLOSES_WITHIN_S)

    def _event(self, state: RunState, at: dt.datetime, report: Report | None) -> RunEvent:
        record, namespace = self._figures.record, os.environ.get("OPENLINEAGE_NAMESPACE", "default")
        kind = job_type_job.JobTypeJobFacet("BATCH", "batch-inference-pipeline", "JOB")
        run_id = uuid.uuid5(uuid.NAMESPACE_URL, f"{self._predictions}#{record.run_id}")
        return RunEvent(
            eventType=state,
            eventTime=at.isoformat(),
            run=Run(str(run_id), self._run_facets(report)),
            job=Job(namespace, self._figures.job, {"jobType": kind}),
            inputs=[self._input(report)],
            outputs=[self._output(report)],
            producer=_PRODUCER,
        )

    def _run_facets(self, report: Report | None) -> dict[str, Any]:
        facets: dict[str, Any] = {}
        if day := day_of(self._figures.record.partition):
            facets["nominalTime"] = nominal_time_run.NominalTimeRunFacet(day.isoformat())
        if report is None:
            return facets
        if report.error:
            facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(report.error, "Python")
        facets["processing_engine"] = processing_engine_run.ProcessingEngineRunFacet(
            report.versions.get("ray", "unknown"), "ray"
        )
        return facets

    def _input(self, report: Report | None) -> InputDataset:
        plan = self._figures.record.plan
        statistics = input_statistics_input_dataset.InputStatisticsInputDatasetFacet(
            rowCount=report.rows.total if report else plan.num_rows if plan else None,
            size=plan.input_bytes if plan else None,
            fileCount=plan.num_shards if plan else None,
        )
        facets = {"schema": _schema(plan.fields)} if plan and len(plan.fields) else {}
        return InputDataset(
            *_name(self._source), facets=facets, inputFacets={"inputStatistics": statistics}
        )

    def _output(self, report: Report | None) -> OutputDataset:
        plan, current = self._figures.record.plan, self._figures.record.current
        facets: dict[str, Any] = {}
        if plan is not None:
            facets["schema"] = _schema(plan.prediction_schema())
        if report is None:
            return OutputDataset(*_name(self._predictions), facets=facets)
        if current is not None:
            version = str(current.number)
            facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(version)
        if judged := [gate for gate in report.gates if gate.status != "off"]:
            facets["dataQualityAssertions"] = (
                data_quality_assertions_dataset.DataQualityAssertionsDatasetFacet(
                    [_assertion(gate) for gate in judged]
                )
            )
        if report.output.uri is None:
            return OutputDataset(*_name(self._predictions), facets=facets)
        statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
            rowCount=report.rows.predicted, size=report.output.bytes, fileCount=report.output.parts
        )
        return OutputDataset(
            *_name(self._predictions), facets=facets, outputFacets={"outputStatistics": statistics}
        )


def _name(uri: str) -> tuple[str, str]:
    """Return namespace and name of a path or URI, as OpenLineage names files and objects."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return "file", uri
    bucket, _, path = rest.partition("/")
    return f"{scheme}://{bucket}", path or "/"


def _schema(schema: Any) -> schema_dataset.SchemaDatasetFacet:
    """Return the facet of an Arrow schema."""
    return schema_dataset.SchemaDatasetFacet(
        [schema_dataset.SchemaDatasetFacetFields(field.name, str(field.type)) for field in schema]
    )


def _assertion(gate: Gate) -> data_quality_assertions_dataset.Assertion:
    """Return a gate: `success` says whether it found nothing, `severity` what that did."""
    return data_quality_assertions_dataset.Assertion(
        assertion=gate.name,
        success=gate.status == "pass",
        severity="error" if gate.status == "fail" else "warn",
        name=gate.name,
        description=gate.message,
        expected=None if gate.limit is None else str(gate.limit),
        actual=None if gate.value is None else str(gate.value),
    )
