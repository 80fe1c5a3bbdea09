"""`pipeline tune`: measure every way to run a job's model, and show what a run would choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.core.errors import JobError
from pipeline.execution.cluster.connect import connect
from pipeline.job.model import AUTO
from pipeline.job.reading.loader import Overrides
from pipeline.models.spec import ModelSpec
from pipeline.operations.arguments import Date, JobLike, load_job, name_of, run_options
from pipeline.planning.allocation import allocate
from pipeline.preprocessing.model_input import cost_of
from pipeline.report.showing.printed import printed
from pipeline.runs.context import RunContext
from pipeline.runs.preparing.prepare import check_before_ray, prepare
from pipeline.runs.progress import Progress, shown_on
from pipeline.runs.tuning.auto import needs_tuning
from pipeline.runs.tuning.auto import tune as measure_ways
from pipeline.storage.errors import options_named


@printed
def tune(
    job: JobLike,
    *,
    date: Date = None,
    overrides: Overrides = (),
    address: str | None = None,
    allow_import: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure every way to run the job's model on a sample of its rows, and keep the results.

    Later runs of the model use them; nothing is published. It tries what the job leaves to `auto`,
    or everything if that is nothing.

    Args:
        job: A job, the path of a job file, or its sections as a mapping.
        date: The value of `${date}`; None: today in UTC.
        overrides: Fields that override those of the job.
        address: The Ray cluster; None starts a local Ray.
        allow_import: Prefixes of the modules that the job may name.
        progress: As for `run`.

    Returns:
        The results, and what later runs will use.

    Raises:
        JobError: The job is wrong, or none of the ways works.
    """
    options = run_options(address, allow_import)
    loaded = load_job(job, date=date, overrides=overrides)
    run = RunContext.of(loaded, options).with_settled_source()
    settled = run.job
    with options_named("sink.storage_options"):
        run.store.probe(single_writer=settled.run.single_writer)
    plan, model = prepare(run)
    if model.has_other_engine:
        raise JobError(
            f"model.engine = {model.engine!r}: there is nothing to tune, as the engine fills its "
            "batches itself"
        )
    check_before_ray(run, plan, model)
    with shown_on(progress) as shown:
        shown.phase(f"tuning {name_of(job)}")
        with connect(options.address) as (hardware, _, on_cluster):
            allocation = allocate(settled.resources, hardware, cost=cost_of(settled.source))
            profile, chosen = measure_ways(
                run, plan, model, hardware, allocation, on_cluster=on_cluster, say=shown.phase
            )
    return {
        "model": model.name,
        "rows": plan.num_rows,
        "min_agreement_pct": settled.gates.min_agreement_pct,
        "runtimes": [{name: getattr(way, name) for name in _WAY} for way in profile.ways],
        "batch_sizes": [
            {
                "runtime": way.runtime,
                "precision": way.precision,
                "batch": size,
                "rows_per_s": rate,
            }
            for way in profile.ways
            for size, rate in way.batches
        ],
        "chosen": f"{chosen.runtime} {chosen.precision}",
        "gain": profile.gain(chosen),
        "batch_size": chosen.batch_size or plan.batch_size,
        "batch_tokens": chosen.batch_tokens or plan.batch_tokens or None,
        "used_by": _used_by(model),
    }


def _used_by(model: ModelSpec) -> str:
    """Return which runs use the choice, on machines like this and for any output."""
    if model.takes_fastest:
        return "runs of this model whose job sets neither model.runtime nor model.precision"
    runtime, precision = (model.runtime, model.precision) if needs_tuning(model) else (AUTO, AUTO)
    return f"runs of this model with model.runtime: {runtime} and model.precision: {precision}"


_WAY = ("runtime", "precision", "rows_per_s", "load_s", "agreement_pct", "worst", "problem")
