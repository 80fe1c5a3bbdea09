"""`pipeline plan`: show what a run of a job would do now; writes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from shlex import quote
from typing import Any

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest, current_or_unknown, require_one_key
from pipeline.commit.plan_store import named
from pipeline.commit.staging import list_staged
from pipeline.inference.library_check import hold_to_library
from pipeline.inference.runtimes.runtime import emulated_reason
from pipeline.inference.vllm.usable import reference_problem
from pipeline.job.job import Job
from pipeline.job.reading.loader import Overrides
from pipeline.models.spec import ModelSpec
from pipeline.models.tasks.scores import describe_scores
from pipeline.operations.arguments import Date, JobLike, load_job, run_options
from pipeline.planning.plan import Plan
from pipeline.planning.tiling import done_slices
from pipeline.published.describe import DIGEST_CHARS, version_facts
from pipeline.report.earlier_reports import find_past_run, is_basis
from pipeline.report.estimate import NO_BASIS, estimate
from pipeline.report.sections.carried import first_shards, plan_facts
from pipeline.report.sections.model import ModelSection
from pipeline.report.showing.printed import PrintedDict
from pipeline.reuse.finding import Reuse, find_reuse
from pipeline.runs.context import RunContext
from pipeline.runs.preparing.one_row import Preview, preview_row
from pipeline.runs.preparing.prepare import check_before_ray, check_hardware, prepare
from pipeline.runs.staleness import is_published, next_step, why_stale
from pipeline.runs.tuning.auto import foresee, needs_tuning
from pipeline.runs.tuning.choice import Choice
from pipeline.runs.tuning.selection import as_tried
from pipeline.sources.input_columns import Vector, vectors_of
from pipeline.storage.errors import options_named
from pipeline.storage.store import Store

_NOTHING = "nothing: this is published already"


class Planned(PrintedDict):
    """What a run would do; prints only the first of many features and shards."""

    def shown(self) -> dict[str, Any]:
        """Return the part that fits a terminal."""
        document = dict(self)
        if "carried" in document:
            document["carried"] = first_shards(document["carried"])
        facts = {**document["input"]}
        if "features" in facts:
            size, names = facts.pop("num_features"), tuple(facts["features"])
            facts["features"] = f"{size:,}: {Vector(size, names).first_names()}"
        return {**document, "input": facts}


def plan(
    job: JobLike,
    *,
    date: Date = None,
    overrides: Overrides = (),
    address: str | None = None,
    allow_import: Sequence[str] = (),
    tries: bool = True,
    reuse: bool = True,
) -> Planned:
    """Return what a run of this job would do now; writes nothing.

    Args:
        job: A job, the path of a job file, or its sections as a mapping.
        date: The value of `${date}`; None: today in UTC.
        overrides: Fields that override those of the job.
        address: The Ray cluster; None: this machine.
        allow_import: Prefixes of the modules that the job may name.
        tries: Build the model and predict one row, unless there is nothing to do.
        reuse: As for `run`.

    Raises:
        PipelineError: The error with which the run would end before its first row.
    """
    loaded = load_job(job, date=date, overrides=overrides)
    options = run_options(address, allow_import, reuse=reuse)
    run = RunContext.of(loaded, options).with_settled_source()
    return Planned(_describe(run, tries=tries))


def _describe(run: RunContext, *, tries: bool) -> dict[str, Any]:
    job, store, layout = run.job, run.store, run.layout
    with options_named("sink.storage_options"):
        require_one_key(store, layout)
    plan, model = prepare(run)
    with options_named("sink.storage_options"):
        current = current_or_unknown(store, layout)
    is_done = is_published(current, plan, job.sink.partition_columns)
    reuse = Reuse(plan)
    if not is_done:
        is_asked = run.options.reuse
        reuse = find_reuse(store, layout, job, plan, current, is_asked=is_asked)
    plan = named(reuse.plan)
    step = _next_step(job, plan, reuse, store, layout, current, is_done=is_done)
    is_needed = not is_done
    cluster = _check(run, plan, model) if is_needed else None
    tried = preview_row(job, plan, model) if tries and is_needed else None
    choice = foresee(run, plan, model)
    held_to = _held_to(model) if is_needed else None
    return {
        "partition": layout.name,
        "fingerprint": plan.fingerprint[:DIGEST_CHARS],
        **step,
        "estimate": _estimate(job, store, plan, model, choice, step),
        "input": {
            **_input(plan, run.record.num_unreadable_shards),
            **_features(vectors_of(job.source, plan.fields)),
        },
        "skipped": plan.skipped.to_dict(),
        **({} if is_done else {"carried": plan_facts(reuse)}),
        "model": {
            **_model(job, as_tried(model, choice.way), plan, tried, choice, held_to),
            **(_slow(job, as_tried(model, choice.way)) if run.options.address is None else {}),
        },
        "published_now": version_facts(current),
        **({"cluster": cluster} if cluster else {}),
    }


def _held_to(model: ModelSpec) -> str | None:
    return "; ".join(filter(None, (hold_to_library(model), reference_problem(model)))) or None


def _check(run: RunContext, plan: Plan, model: ModelSpec) -> str | None:
    """Make the checks of a run; return the answer of its cluster, if it has one."""
    check_before_ray(run, plan, model)
    job, address = run.job, run.options.address
    # The default resources fit every machine.
    if address is None and not job.resources.model_fields_set:
        return None
    message = check_hardware(job, address)
    return None if address is None else message


def _next_step(
    job: Job,
    plan: Plan,
    reuse: Reuse,
    store: Store,
    layout: Layout,
    current: Manifest | None,
    *,
    is_done: bool,
) -> dict[str, Any]:
    """Return what a run would do now, and how much of it is staged."""
    done = done_slices(plan, list_staged(store, layout.staging(plan.work)))
    changed = why_stale(store, layout, current, plan) if current and not is_done else ""
    rows_left = None
    if plan.num_rows is not None:
        known = reuse.known(job)
        staged = {(key.unit, key.start) for key in done}
        rows_left = sum(
            known.num_computed(key) if known else key.num_rows
            for key in plan.slices()
            if (key.unit, key.start) not in staged
        )
    return {
        "a_run_would": _NOTHING if is_done else next_step(current, has_staged=bool(done)),
        **({"changed": changed} if changed else {}),
        "units": len(plan.units),
        "slices": None if plan.num_rows is None else sum(1 for _ in plan.slices()),
        "slices_staged": len(done),
        "rows_left": 0 if is_done else rows_left,
    }


def _estimate(
    job: Job, store: Store, plan: Plan, model: ModelSpec, choice: Choice, step: dict[str, Any]
) -> dict[str, Any]:
    model, way = as_tried(model, choice.way), choice.way
    # `auto` and `pipeline tune` choose what the job does not set.
    asked = job.model if needs_tuning(model) or way.batch_size or way.batch_tokens else plan
    wanted = ModelSection(
        name=model.name,
        weights_sha256=model.weights_sha256,
        runtime=model.runtime,
        precision=model.precision,
        batch_size=asked.batch_size,
        batch_tokens=asked.batch_tokens or None,
    )
    name = Layout(job.sink.partition).name
    past = find_past_run(store, name, partial(is_basis, wanted))
    past = past or find_past_run(store, name, partial(is_basis, wanted, is_finished=False))
    price, is_published = job.run.price_of(()), step["a_run_would"] == _NOTHING
    if price is None and past is not None and job.run.price_per_node_hour:
        price = past.price_per_node_hour  # for the nodes of that run
    would = estimate(past, step["rows_left"], plan.num_rows, price, is_published=is_published)
    if would.basis == NO_BASIS:
        other = quote(f"sink.uri={store.url('trial')}")
        advice = f"--set run.limit_rows=500 --set {other}, then plan with that sink.uri"
        would = replace(would, basis=f"{NO_BASIS}: run once with {advice}")
    return asdict(would)


def _input(plan: Plan, num_unreadable: int) -> dict[str, Any]:
    return {
        **({} if plan.table is None else {"table_version": str(plan.table_version)}),
        "shards": plan.num_shards,
        "unreadable_shards": None if plan.num_rows is None else num_unreadable,
        "rows": plan.num_rows,
        **({} if plan.num_rows is not None else {"rows_are": "unknown until read"}),
        "bytes": plan.input_bytes,
        **({"left_out": plan.left_out._asdict()} if plan.where else {}),
    }


def _features(vectors: Mapping[str, Vector]) -> dict[str, Any]:
    """Return the name of each number of the vectors; {} without features."""
    if not vectors:
        return {}
    names = [f"{of}: {name}" if of else name for of, v in vectors.items() for name in v.names]
    return {"num_features": sum(vector.size for vector in vectors.values()), "features": names}


def _model(
    job: Job,
    model: ModelSpec,
    plan: Plan,
    tried: Preview | None,
    choice: Choice,
    held_to: str | None,
) -> dict[str, Any]:
    task = model.task
    return {
        "name": model.name,
        "task": task.kind,
        "labels": len(task.labels) or None,
        "embedding_dim": task.embedding_dim or None,
        "pooling": model.pooling,
        "max_tokens": model.input.max_tokens,
        "runtime": model.runtime,
        "precision": model.precision,
        "choice": choice.text,
        "weights_sha256": (model.weights_sha256 or "")[:DIGEST_CHARS] or None,
        "batch_size": plan.batch_size,
        "batch_tokens": plan.batch_tokens or None,
        "scores": tried.scores if tried else describe_scores(task, model.shown_name),
        "transform": None if tried is None else tried.transform,
        "tried": None if tried is None else str(tried),
        "held_to": held_to,
        "read_from_directory": [_read_from(line) for line in model.notes],
    }


def _slow(job: Job, model: ModelSpec) -> dict[str, str]:
    """Return why the precision is slow on this machine; {} if it is not."""
    reason = emulated_reason(model.precision, is_on_gpu=bool(job.resources.num_gpus))
    return {"slow": reason} if reason else {}


def _read_from(line: str) -> dict[str, str]:
    """Split a note `FILE: TEXT`."""
    file, _, says = line.partition(": ")
    return {"file": file, "says": says}
