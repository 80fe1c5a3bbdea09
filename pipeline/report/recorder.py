"""The recorder of a run, which notes its facts, so that it has a report however it ends."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter
from typing import Any, Literal

from pipeline.commit.manifest import Manifest
from pipeline.commit.staging import StagedSlice
from pipeline.core.failures import Cause
from pipeline.core.figures import PREPARED, Counters, SliceFigures, StageCounters, measure
from pipeline.core.rows_set_aside import NOT_READ
from pipeline.core.semantics import environment_versions, package_versions
from pipeline.gates.results import GateResult
from pipeline.inference.runtimes.runtime import math_of
from pipeline.models.spec import ModelSpec
from pipeline.models.tasks.scores import describe_scores
from pipeline.planning.allocation import Allocation, Hardware
from pipeline.planning.plan import Plan
from pipeline.report.document import Report, RunStatus, build_report
from pipeline.report.row_accounts import RowAccounts
from pipeline.report.sections.carried import Carried, Retry
from pipeline.report.sections.failures import FailedRows, SkippedFiles
from pipeline.report.sections.limits import Load
from pipeline.report.sections.model import Choice, ModelSection, Placement
from pipeline.report.sections.model import Hardware as HardwareSection
from pipeline.report.sections.outcome import Gate, Output, Rows
from pipeline.report.sections.over_time import Timeline

Phase = Literal["listing", "starting", "predicting", "publishing"]
_LOOK_S = 10.0
_DRIVER_SLOTS = {"list": 1.0, "publish": 1.0}


class RunRecorder(RowAccounts):
    """The facts of one run so far."""

    def __init__(self, run_id: str, partition: str) -> None:
        super().__init__()
        self.run_id = run_id
        self.partition = partition
        self.started_at = dt.datetime.now(dt.UTC)
        self.started_s = perf_counter()
        self._prepared: tuple[str, ...] = PREPARED
        self._model = ModelSection()
        self._spec: ModelSpec | None = None
        self._output = Output()
        self.placement: Placement | None = None
        self._gate_results: list[GateResult] = []
        self._figures = SliceFigures()
        """Figures of the driver and of the slices that this run computed."""
        self._timeline = Timeline()
        self._streaming_since_s: float | None = None
        self._streaming_wall_s: float | None = None
        self.current: Manifest | None = None
        """The published version, once it is known."""
        self._in_flight: list[str] = []
        self._retry: Retry | None = None
        self._carried: Carried | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[StageCounters]:
        """Measure a stage of the driver (list, publish)."""
        counters: Counters = {}
        try:
            with measure(counters, name) as counts:
                yield counts
        finally:
            self._figures += SliceFigures.from_json(counters)

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """Time from the first read to the last write."""
        since_s, self._is_begun = perf_counter(), True
        self._streaming_since_s = since_s
        try:
            yield
        finally:
            self._streaming_wall_s = perf_counter() - since_s

    def planned(self, plan: Plan, model: ModelSpec, num_gpus: float) -> None:
        """Note the plan and the model."""
        self.plan, self._prepared, self._spec = plan, model.input.stage_names, model
        self._total_rows = plan.num_rows
        if plan.num_rows is not None:
            self._total_slices = sum(1 for _ in plan.slices())
        choice = plan.model.get("choice")
        self._model = ModelSection(
            name=model.name,
            weights_sha256=model.weights_sha256,
            runtime=model.runtime,
            precision=model.precision,
            float32_math=math_of(model.precision),
            device="cuda" if num_gpus else "cpu",
            batch_size=plan.batch_size,
            batch_tokens=plan.batch_tokens or None,
            agreement_pct=plan.model.get("agreement_pct"),
            agreement_worst=plan.model.get("agreement_worst"),
            artefact_sha256=plan.model.get("artefact_sha256"),
            choice=Choice(**choice) if choice else None,
        )

    @property
    def scores(self) -> str | None:
        """Describe the model's outputs; None if unknown, or if they are plain logits."""
        if self._spec is None:
            return None
        return describe_scores(self._spec.task, self._spec.shown_name)

    def connected(
        self,
        hardware: Hardware,
        allocation: Allocation,
        ray_start_s: float,
        *,
        on_cluster: bool = False,
    ) -> None:
        """Note the hardware and its division."""
        self.placement = Placement(hardware, allocation, ray_start_s, on_cluster)

    def divided(self, allocation: Allocation) -> None:
        """Note how the hardware is divided for the remaining slices."""
        if self.placement is not None:
            self.placement = replace(self.placement, allocation=allocation)

    def looks(self, at_hardware: Callable[[], Hardware]) -> None:
        """Note every few seconds what hardware a cluster has: nodes come and go."""
        placement, elapsed_s = self.placement, self.elapsed_s
        if placement and placement.on_cluster and elapsed_s - placement.looked_s >= _LOOK_S:
            self.placement = placement.looked(at_hardware(), elapsed_s)

    @property
    def node_labels(self) -> Sequence[frozenset[str]]:
        """Return the labels of each node; () before there is a Ray."""
        return self.placement.hardware.node_labels if self.placement else ()

    @property
    def on_cluster(self) -> bool:
        """Tell whether this process uses a Ray that it did not start."""
        return self.placement is not None and self.placement.on_cluster

    @property
    def streaming_wall_s(self) -> float | None:
        """Return the seconds from the first read to the last write, or to now; None before it."""
        if self._streaming_wall_s is not None or self._streaming_since_s is None:
            return self._streaming_wall_s
        return perf_counter() - self._streaming_since_s

    @property
    def elapsed_s(self) -> float:
        """Return the seconds since the run began."""
        return perf_counter() - self.started_s

    def computed(self, staged: StagedSlice) -> None:
        """Count a slice that this run has committed."""
        self._figures += staged.figures
        self._timeline.add(self.streaming_wall_s or 0.0, staged)
        self.add("computed", staged)

    def resumed(self, staged: StagedSlice) -> None:
        """Count a slice that was committed before: by an earlier run, or by this one."""
        self.add("computed" if staged.run_id == self.run_id else "resumed", staged)

    def stalled(self, in_flight: Sequence[str]) -> None:
        """Note what was in flight when progress stopped."""
        self._in_flight = list(in_flight)

    def retried(self, **figures: int) -> None:
        """Note the rows of a retry; the fields are those of the section `Retry`."""
        self._retry = (self._retry or Retry()).but(**figures)

    def carried(self, **figures: Any) -> None:
        """Note the rows that are carried over; the fields are those of the section `Carried`."""
        self._carried = (self._carried or Carried()).but(**figures)

    def not_carried(self, why: str, looked_at: int = 0) -> None:
        """Note why nothing is carried over, in place of any figures before.

        Args:
            why: In a few words.
            looked_at: Number of earlier versions that were considered.
        """
        self._carried = Carried(why_not=why, looked_at=looked_at)

    @property
    def carried_section(self) -> Carried | None:
        """Return the section `Carried` as known so far."""
        carried, looked_up = self._carried, self.figures.looked_up
        if carried is None or not carried.sources:
            return carried
        if self._is_begun:
            carried = carried.but(rows=self.num_carried, checked_rows=self.num_checked)
            failed = [line for line in self.figures.advice if line.startswith(NOT_READ)]
            if failed and not self.num_carried:
                carried = carried.but(why_not=failed[0])
        if looked_up is None:
            return carried
        return carried.but(
            content_rows=looked_up.num_known, lookup_failed_rows=looked_up.num_failed
        )

    @property
    def carried_facts(self) -> dict[str, Any]:
        """Return the same for the manifest; {} if nothing is carried over."""
        carried = self.carried_section
        return carried.model_dump(exclude_none=True) if carried and carried.rows else {}

    def judged(self, results: list[GateResult]) -> None:
        """Note the results of the gates."""
        self._gate_results = results

    def already_published(self, manifest: Manifest, uri: str) -> None:
        """Note that an earlier run published exactly this."""
        self._rows.update(resumed=manifest.num_rows)
        self.num_quarantined = manifest.num_quarantined
        names = ("runtime", "precision", "choice")
        known = {name: manifest.model[name] for name in names if name in manifest.model}
        self._model = self._model.but(**known)
        self._total_rows, self._published = manifest.num_rows, manifest
        self.published(manifest, uri)

    def published(self, manifest: Manifest, uri: str) -> None:
        """Note the version that is published now."""
        self.current = manifest
        self._output = Output(
            uri=uri,
            version=manifest.number,
            parts=len(manifest.parts),
            bytes=sum(part.size_bytes for part in manifest.parts),
        )

    def failed_alike(self, cause: Cause) -> None:
        """Note why all rows of the first batches failed; they are not staged."""
        self._alike = cause

    @property
    def is_retry(self) -> bool:
        """Tell whether the run retries rows of a quarantine."""
        return self._retry is not None

    def report(
        self,
        status: RunStatus,
        exit_code: int,
        error: str | None = None,
        price_per_node_hour: float | None = None,
    ) -> Report:
        """Return the report of all that is known."""
        placement, finished_at = self.placement, dt.datetime.now(dt.UTC)
        wall_s = self.elapsed_s
        stated = Report(
            run_id=self.run_id,
            partition=self.partition,
            status=status,
            exit_code=exit_code,
            fingerprint=self.fingerprint,
            error=error,
            started_at=self.started_at.isoformat(timespec="seconds"),
            finished_at=finished_at.isoformat(timespec="seconds"),
            wall_s=wall_s,
            streaming_wall_s=self.streaming_wall_s,
            price_per_node_hour=price_per_node_hour,
            rows=self._rows_with_carried(),
            slices=self.slices_section(),
            reasons=dict(self.reasons),
            top_failures=[FailedRows(**cause.to_dict()) for cause in self.top_failures()],
            unreadable_shards=self.num_unreadable_shards,
            skipped=SkippedFiles(**(self.skipped.to_dict() if self.plan else {})),
            hardware=placement.hardware_section(wall_s) if placement else HardwareSection(),
            model=self._model.but(
                scores=self.scores,
                devices=dict(self.figures.devices),
                advice=self._figures.advice_lines,
            ),
            output=self._output,
            gates=[Gate(**result.to_dict()) for result in self._gate_results],
            top_labels=self.top_labels(),
            versions={**package_versions(), **environment_versions()},
            over_time=self._timeline.section(),
            in_flight=self._in_flight,
            retry=self._retry,
            carried=self.carried_section,
        )
        measured = Load(
            figures=self._figures,
            slots=_DRIVER_SLOTS | (placement.slots(self._prepared, wall_s) if placement else {}),
            startup=placement.startup_wall_s(self._figures, wall_s) if placement else {},
            in_actors=placement.allocation.in_actors if placement else frozenset(),
            prepared=self._prepared,
        )
        return build_report(stated, measured)

    def _rows_with_carried(self) -> Rows:
        rows = self.rows_section()
        has_sources = self._carried is not None and bool(self._carried.sources)
        return rows.but(carried=self.num_carried) if has_sources else rows

    @property
    def fingerprint(self) -> str | None:
        """Return the fingerprint of the new version; None until it is planned."""
        return self.plan.fingerprint if self.plan else None

    @property
    def phase(self) -> Phase:
        """Return the current phase."""
        if self.plan is None:
            return "listing"
        if self._streaming_wall_s is not None or self.num_left == 0:
            return "publishing"
        return "predicting" if self._is_begun else "starting"

    @property
    def failed_gates(self) -> list[str]:
        """Return the names of the gates that failed."""
        return [result.name for result in self._gate_results if result.status == "fail"]
