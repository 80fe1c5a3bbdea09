"""A challenger: another model predicts the rows that a run prepares, into an output of its own.

That output lies in the folder `challenger` of the sink, with the same partitions: readers, `verify`
and `diff` take it as any other. It is published after the run's own rows are, and whatever it does,
they are published as without it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from pipeline.commit.layout import CHALLENGER
from pipeline.commit.manifest import Manifest, current_manifest
from pipeline.commit.parts.compaction import RunTasks
from pipeline.commit.parts.part_reader import read_columns
from pipeline.commit.plan_store import adopt_plan
from pipeline.commit.publish import repair
from pipeline.commit.published.diff.comparing import compare_versions
from pipeline.commit.published.diff.joining import Version
from pipeline.commit.staging import list_staged, read_footer
from pipeline.core.errors import JobError, PipelineError
from pipeline.core.failures import Failure, Reason
from pipeline.core.printable import clean_message
from pipeline.core.registry import GATES, names
from pipeline.core.schema import ERROR
from pipeline.core.slices import SliceKey
from pipeline.execution.challenger import ChallengerConfig
from pipeline.execution.isolation.row_isolation import fail
from pipeline.execution.stages import PREDICT
from pipeline.execution.tasks import run_tasks
from pipeline.inference.settled_scores import scores_path
from pipeline.inference.slice_results import unpredicted
from pipeline.job.job import Job
from pipeline.job.model import AUTO
from pipeline.models.spec import EAGER, FP32, ModelSpec, PredictorConfig
from pipeline.planning.plan import Plan
from pipeline.planning.tiling import require_complete
from pipeline.runs.builders import make_writer, plain_predictor_config, trial_bytes
from pipeline.runs.context import RunContext, RunOptions, Settled
from pipeline.runs.ending.finish import finish
from pipeline.runs.preparing.prepare import job_model
from pipeline.storage.store import StoredFile

log = logging.getLogger(__name__)

_NOT_THERE = "the worker of the challenger ended, or an earlier run has computed the row"
_TOLERANCE, _MOVERS = 0.001, 100


@dataclass(frozen=True)
class Challenging:
    """The challenger of a run."""

    run: RunContext
    """Of its own output."""
    model: ModelSpec
    plan: Plan
    """The slices of the run's plan."""
    max_bytes: int
    """How much memory its process may take."""

    @classmethod
    def of(cls, run: RunContext, plan: Plan, champion: ModelSpec) -> Challenging | None:
        """Return the challenger of a job; None if it has none, or one that cannot be used.

        The latter is a warning, for the run itself does not need it.
        """
        challenger = run.job.model.challenger_model
        if challenger is None or run.record.is_retry:
            return None
        try:
            own = RunContext.of(job_of_challenger(run.job), _options(run.options))
            model = challenger_of(run.job, plan, champion, run.options.allow_import)
            ours = adopt_plan(own.store, own.layout, _plan(plan, model))
            max_bytes = trial_bytes(own.job, model)
        except PipelineError as error:
            log.warning("there is no challenger: %s", error)
            return None
        own.record.planned(ours, model, 0)
        return cls(own, model, replace(ours, source_root=plan.source_root), max_bytes)

    def config(self, settled: Settled) -> ChallengerConfig:
        """Return what actors need."""
        return ChallengerConfig(
            self._predictor(settled.allocation.actor_threads),
            make_writer(self.run, self.plan, self.model),
            self.run.job.run.row_timeout_s,
            self.max_bytes,
        )

    def _predictor(self, num_threads: int) -> PredictorConfig:
        batch_size = self.run.job.model.batch_size or self.plan.batch_size
        pin = self.run.layout.tensors(self.plan.fingerprint)
        return replace(
            plain_predictor_config(self.plan, self.model, batch_size, num_threads),
            models=self.run.store,
            scores_path=scores_path(self.model),
            pin=None if self.model.has_weights else pin,
        )

    def publish(
        self, run: RunContext, plan: Plan, champion: Manifest, tasks: RunTasks = run_tasks
    ) -> str:
        """Publish its predictions, and compare them with those of the run, which are published.

        Args:
            champion: What it has published.
            tasks: As of `finish`.

        Returns:
            What became of it, in a line.
        """
        try:
            manifest = self._publish(run, plan, tasks)
            told = self._compare(run, champion, manifest)
        except Exception as error:  # noqa: BLE001  # the run has published, and that stands
            told = f"nothing was compared: {clean_message(f'{type(error).__name__}: {error}')}"
            log.warning("challenger %s: %s", self.model.shown_name, told)
        return f"challenger {self.model.shown_name}: {told}"

    def _publish(self, run: RunContext, plan: Plan, tasks: RunTasks) -> Manifest:
        own = self.run
        slices = require_complete(
            plan, list_staged(run.store, run.layout.staging(plan.fingerprint))
        )
        with own.held() as lease:
            base = repair(own.store, own.layout, own.job.sink.keep_versions)
            if base is not None and base.fingerprint == self.plan.fingerprint:
                return base
            folder = own.layout.staging(self.plan.fingerprint)
            known = list_staged(own.store, folder)
            for key, file in slices:
                if key not in known:
                    self._fill(run, key, file)
            known = list_staged(own.store, folder)
            staged = {key: known[key] for key, _ in slices}
            for each in staged.values():
                own.record.resumed(read_footer(own.store, each.path))
            return finish(own, self.plan, staged, base, lease, tasks)

    def _fill(self, run: RunContext, key: SliceKey, file: StoredFile) -> None:
        """Commit a slice that it has no predictions of."""
        rows = read_columns(run.store, file.path)
        failure = Failure(Reason.MODEL_ERROR, PREDICT, _NOT_THERE)
        has_none = [row for row, each in enumerate(rows.column(ERROR).to_pylist()) if each is None]
        failed = fail(rows, dict.fromkeys(has_none, failure))
        writer = make_writer(self.run, self.plan, self.model)
        writer.write(key, {}, unpredicted(self._predictor(1), failed))

    def _compare(self, run: RunContext, champion: Manifest, manifest: Manifest) -> str:
        """Write how both differ beside the run's report; return it in a line."""
        own = self.run
        sides = Version(run.store, run.layout, champion), Version(own.store, own.layout, manifest)
        found = compare_versions(*sides, tolerance=_TOLERANCE, num_movers=_MOVERS)
        document: dict[str, Any] = {
            "model": manifest.model,
            "predictions": own.store.url(own.layout.predictions),
            "rows": manifest.num_rows,
            "quarantined": manifest.num_quarantined,
            "agreement_pct": 100.0 - found.changed_pct if found.both else None,
            "diff": found.to_dict(),
        }
        path = run.layout.report(champion.run_id, f"{CHALLENGER}.json")
        run.store.put(path, json.dumps(document, allow_nan=False).encode())
        head = f"{found.both - found.changed:,} of {found.both:,} rows agree"
        failed = f", {manifest.num_quarantined:,} have no prediction of it"
        return f"{head}{failed if manifest.num_quarantined else ''}; {run.store.url(path)}"


def with_challenger(run: RunContext, settled: Settled) -> Settled:
    """Return the same with the challenger of the job, if it has one: then actors commit slices, so
    that their own are committed first."""
    challenging = Challenging.of(run, settled.plan, settled.model)
    if challenging is None:
        return settled
    allocation = replace(settled.allocation, num_writers=0)
    return replace(settled, allocation=allocation, challenging=challenging)


def publish_left_challenger(
    run: RunContext, plan: Plan, model: ModelSpec, champion: Manifest, say: Callable[[str], None]
) -> None:
    """Publish what a challenger has predicted beside a run that was killed after its own commit."""
    if not run.job.model.challenger:
        return
    plan = adopt_plan(run.store, run.layout, plan)
    challenging = Challenging.of(run, plan, model)
    if challenging is None:
        return
    own = challenging.run
    base = current_manifest(own.store, own.layout)
    if base is not None and base.fingerprint == challenging.plan.fingerprint:
        return
    if list_staged(own.store, own.layout.staging(challenging.plan.fingerprint)):
        say(challenging.publish(run, plan, champion, _run_here))


def _run_here(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    return [function(*arguments) for arguments in calls]


def challenger_of(
    job: Job, plan: Plan, champion: ModelSpec, allow_import: tuple[str, ...] = ()
) -> ModelSpec:
    """Resolve the challenger of a job.

    Raises:
        JobError: It cannot be found, sees other rows than the model does, or gives other columns.
    """
    challenger = job.model.challenger_model
    assert challenger is not None, "the caller has looked"
    model = job_model(job_of_challenger(job), allow_import).fitted(plan.fields)
    if AUTO in (model.runtime, model.precision):
        model = replace(model, runtime=EAGER, precision=FP32)
    if model.input.settings() != champion.input.settings():
        raise JobError(
            f"model.challenger: {model.shown_name} prepares rows otherwise than "
            f"{champion.shown_name} (size, mean, tokenizer ...), and both get the same rows: say "
            "the same in `transform` or `text`"
        )
    if model.task.kind == champion.task.kind and not model.task.embedding_dim:
        model = replace(model, task=replace(model.task, embedding_dim=champion.task.embedding_dim))
    theirs, ours = (
        [f"{field.name}: {field.type}" for field in each.output_fields()]
        for each in (model, champion)
    )
    if theirs != ours:
        raise JobError(
            f"model.challenger: {model.shown_name} gives {', '.join(theirs)}; {champion.shown_name}"
            f" gives {', '.join(ours)}, and they are to be compared"
        )
    return model


def job_of_challenger(job: Job) -> Job:
    """Return the job of the challenger alone."""
    sink = job.sink
    card = sink.card.model_copy(update={"write": False})
    own = {
        "uri": f"{sink.uri.rstrip('/')}/{CHALLENGER}",
        "table": None,
        "partition_columns": (),
        "card": card,
    }
    return job.model_copy(
        update={
            "model": job.model.challenger_model,
            "sink": sink.model_copy(update=own),
            "gates": job.gates.model_copy(update={"golden": None}),
            "run": job.run.model_copy(update={"reuse": "off"}),
        }
    )


def _options(options: RunOptions) -> RunOptions:
    """Return options with which no gate refuses: people say what a challenger is worth."""
    accepted = dict.fromkeys(names(GATES), "of a challenger")
    return replace(options, accepted=accepted, reuse=False)


def _plan(plan: Plan, model: ModelSpec) -> Plan:
    """Return the plan of the challenger: the slices of the run's own."""
    digest = hashlib.sha256(f"{plan.fingerprint} {json.dumps(model.to_dict())}".encode())
    return replace(
        plan,
        fingerprint=digest.hexdigest(),
        model=model.to_dict(),
        task_fields=pa.schema(model.output_fields()),
        fingerprint_parts={},
        predictor={},
        twin="",
    )
