"""Slices by time: some rows of a model that writes are tried first, in the place of an actor.

What they took is stored with the plan, so that any run of it has the same slices, and beside the
output, so that later partitions need not try theirs. The fingerprint knows nothing of it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace

from pipeline.core.figures.counters import TRIED_ROWS
from pipeline.execution.cluster.connect import connect
from pipeline.execution.cluster.hardware import embedded_hardware
from pipeline.execution.cluster.sharing import SHARING, share_ray
from pipeline.execution.ray_options import CALLS_AT_ONCE
from pipeline.execution.stages import Preprocessing
from pipeline.execution.tasks import TaskLost, value_if_kept
from pipeline.job.model import AUTO
from pipeline.models.spec import ModelSpec
from pipeline.planning.allocation import Hardware, allocate
from pipeline.planning.plan import Plan, cut_anew
from pipeline.planning.probe import Probe
from pipeline.planning.sampling import sample_units
from pipeline.preprocessing.input_facts import cost_of
from pipeline.report.showing.summary import forecast_words
from pipeline.report.speed.probed import probed
from pipeline.runs.context import RunContext, Settled
from pipeline.runs.preparing.tried_rows import FIRST_ROWS, try_rows
from pipeline.runs.tuning.auto import foresee
from pipeline.runs.tuning.profile import key_of, machines_of
from pipeline.runs.tuning.selection import as_tried
from pipeline.runs.tuning.trials.context import TuningContext, lone_task, tuning_context

_NUM_ROWS, _ONE_OF = 64, 10
"""So many rows are tried, but not more than a share of what an actor gets."""
_LEAST_ROWS, _LEAST_BYTES = 64, 64 * 1024
"""Of fewer none are tried: of rows, and of shards whose rows only reading counts."""
_MAX_AGE_DAYS = 30
Say = Callable[[str], None]


@contextlib.contextmanager
def sliced_by_time(run: RunContext, plan: Plan, model: ModelSpec, say: Say) -> Iterator[Plan]:
    """Yield a plan with slices that take about as long as they are to, if rows can be tried.

    A plan that is stored has its slices. The embedded Ray in which rows were tried stays for the
    body.
    """
    with contextlib.ExitStack() as stack:
        is_open = run.job.run.slice_rows is None and num_to_try(plan, model) > 0
        if is_open and not run.store.exists(run.layout.plan(plan.fingerprint)):
            if run.options.address is None and SHARING.get() is None:
                stack.enter_context(share_ray())
            with run.record.stage(TRIED_ROWS):
                probe = find_probe(run, plan, model, say)
            if isinstance(probe, str):
                say(f"no rows were tried, so slices have a number of tokens: {probe}")
            else:
                plan = cut_anew(run.job, plan, probe)
        yield plan


def num_to_try(plan: Plan, model: ModelSpec, num_actors: int = 1) -> int:
    """Return how many rows to try; 0 if the model writes nothing, or there are too few."""
    num_rows = plan.num_rows
    if model.task.generation is None or not plan.units:
        return 0
    if num_rows is None:
        num_bytes = sum(extent.size_bytes for unit in plan.units for extent in unit.extents)
        return _NUM_ROWS if num_bytes >= _LEAST_BYTES else 0
    found = min(_NUM_ROWS, max(FIRST_ROWS, num_rows // (_ONE_OF * num_actors)))
    return found if num_rows >= _LEAST_ROWS else 0


def find_probe(
    run: RunContext, plan: Plan, model: ModelSpec, say: Say, *, keeps: bool = True
) -> Probe | str:
    """Return what rows took on the machines of a run; they are tried if that is unknown.

    Args:
        plan: Not stored yet.
        model: As the job has it; it writes.
        say: Shows what is done.
        keeps: What is found is kept beside the output.

    Returns:
        That, or why no row could be tried.

    Raises:
        PipelineError: There is no Ray, or the job asks for more than it has.
    """
    with connect(run.options.address) as (hardware, _, on_cluster):
        tuning = _tuning(run, plan, model, hardware, on_cluster=on_cluster)
        if known := _known(tuning):
            say(f"slices by the rows that run {known.measured_by} tried on {known.measured_at}")
            return known
        num_rows = num_to_try(plan, model, tuning.allocation.max_actors)
        say(f"trying {num_rows} rows, for slices of half a minute")
        found = _tried(tuning, num_rows)
    if isinstance(found, str):
        return found
    found = replace(
        found,
        measured_by=tuning.measured_by,
        measured_at=dt.datetime.now(dt.UTC).date().isoformat(),
    )
    if keeps and (path := _path(tuning)):
        run.store.put(path, json.dumps(found.to_dict()).encode())
    return found


def known_probe(run: RunContext, plan: Plan, model: ModelSpec) -> Probe | None:
    """Return what rows took in an earlier run on a machine like this one; starts nothing."""
    if model.task.generation is None or run.options.address is not None:
        return None
    return _known(_tuning(run, plan, model, embedded_hardware(), on_cluster=False))


def _tuning(
    run: RunContext, plan: Plan, model: ModelSpec, hardware: Hardware, *, on_cluster: bool
) -> TuningContext:
    way = foresee(run, plan, model).way
    is_open = AUTO in (way.runtime, way.precision)  # it is chosen later, and hardly slower
    settled = model.as_reference() if is_open else as_tried(model, way)
    allocation = allocate(run.job.resources, hardware, cost=cost_of(run.job.source))
    machines = machines_of(on_cluster=on_cluster)
    return tuning_context(
        *(run, plan, settled, hardware, allocation), machines=machines, on_cluster=on_cluster
    )


def _tried(tuning: TuningContext, num_rows: int) -> Probe | str:
    spec, plan, job = tuning.model, tuning.plan, tuning.job
    assert spec.task.generation is not None, "it writes"
    # What the job may refuse has taken its time, too.
    kept = replace(spec.task, generation=replace(spec.task.generation, invalid="keep"))
    config = replace(tuning.config, spec=replace(spec, task=kept), models=None)
    units, seed = sample_units(plan, num_rows)
    threads = tuning.allocation.decoder_threads
    task = lone_task(tuning, try_rows).remote(
        tuning.reader,
        (units, num_rows, seed),
        Preprocessing.of(job.source, spec.input, threads, plan.fields),
        config,
        job.run.row_timeout_s,
        _places(tuning),
    )
    try:
        found: Probe | str = value_if_kept(task)
    except TaskLost as error:
        return f"their process ended ({error})"
    return found


def _places(tuning: TuningContext) -> tuple[int, int, int]:
    hardware, given = tuning.hardware, tuning.allocation
    num_nodes = hardware.num_nodes + hardware.num_without_cpus
    return given.max_actors, num_nodes, CALLS_AT_ONCE if given.actor_gpus else 1


def _known(tuning: TuningContext) -> Probe | None:
    """Return what is kept of the same model, settings and kinds of machines; None if it is old."""
    if not (path := _path(tuning)):
        return None
    try:
        found = Probe.from_dict(json.loads(tuning.store.read_bytes(path)))
        age = dt.datetime.now(dt.UTC).date() - dt.date.fromisoformat(found.measured_at)
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None
    num_actors, num_nodes, _ = _places(tuning)
    known = replace(found, num_actors=num_actors, num_nodes=num_nodes)
    return known if age.days <= _MAX_AGE_DAYS else None


def _path(tuning: TuningContext) -> str:
    """Return where it is kept; '' if the machines are unknown."""
    if not (key := key_of(tuning)):
        return ""
    settings = tuning.plan.fingerprint_parts["settings"]
    name = hashlib.sha256(f"{key} {tuning.model.precision} {settings}".encode()).hexdigest()
    return f"_control/profiles/rows-{name[:32]}.json"


def foresee_rows(run: RunContext, settled: Settled, num_slices: int | None, say: Say) -> None:
    """Say, and note for the report, what the rows that are left will take, if some were tried.

    Args:
        settled: How the plan is carried out.
        num_slices: Slices to compute; None if only reading counts the rows.
        say: Shows it.
    """
    probe, num_rows = settled.plan.probe, run.record.num_left
    if probe is None or num_rows is None:
        return
    placement = run.record.placement
    forecast = probed(
        probe,
        num_rows,
        num_slices,
        run.job.run.price_of(run.record.node_labels),
        num_actors=settled.allocation.max_actors,
        num_nodes=placement.hardware_section().nodes if placement else None,
    )
    run.record.forecast = forecast
    say(f"expecting {forecast_words(forecast)}")
