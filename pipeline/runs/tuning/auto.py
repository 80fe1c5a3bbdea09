"""Choose the runtime and precision of a plan's model: by the job, by a profile, or by measuring.

With `auto` a run measures unknown runtimes on the job's own rows, before it starts, for a tenth of
its time. A job that sets neither runtime nor precision gets the fastest known runtime at fp32; if
none is known, a run of a minute or more measures likewise. The choice is stored beside the plan and
adopted by every rerun, so that later knowledge never changes work that has begun.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pipeline.core.documents import sealed, unsealed
from pipeline.core.errors import PipelineError
from pipeline.execution.cluster.hardware import embedded_hardware
from pipeline.inference.runtimes import runtime_of
from pipeline.inference.runtimes.int8 import INT8
from pipeline.inference.runtimes.runtime import missing_reason, unfit_reason
from pipeline.inference.runtimes.usable import usable_ways
from pipeline.job.model import AUTO
from pipeline.models.spec import EAGER, FP32, ModelSpec
from pipeline.planning.allocation import Allocation, Hardware, allocate
from pipeline.planning.plan import Plan
from pipeline.preprocessing.model_input import cost_of
from pipeline.runs.context import RunContext, Settled
from pipeline.runs.tuning import choice as choices
from pipeline.runs.tuning.choice import Choice
from pipeline.runs.tuning.profile import Profile, keep_profile, load_profile, machines_of
from pipeline.runs.tuning.selection import Budget, Trial, as_tried, candidates
from pipeline.runs.tuning.trial_context import TuningContext
from pipeline.runs.tuning.trials import choose_confirmed, try_ways
from pipeline.storage.create_once import CreateOutcome
from pipeline.storage.store import Store

log = logging.getLogger(__name__)


def resolve_runtime(
    run: RunContext,
    plan: Plan,
    model: ModelSpec,
    hardware: Hardware,
    allocation: Allocation,
    *,
    on_cluster: bool = False,
    measures: bool = True,
    published: Mapping[str, Any] | None = None,
    has_known_rows: bool = False,
    say: Callable[[str], None] = log.info,
) -> Settled:
    """Return how the model of this plan is run.

    Args:
        model: As in the job.
        hardware: The resources of the Ray in use.
        allocation: The division of the cluster.
        on_cluster: This process did not start that Ray.
        measures: There are processes in which runtimes can be measured without being asked for.
        published: `model` of the version that a retry merges its rows into.
        has_known_rows: Few rows are left to predict, or an unknown number.
        say: Shows what is being tried.

    Raises:
        JobError: The model cannot be run in any way.
    """
    if not (needs_tuning(model) or model.takes_fastest or model.input.is_approximate):
        return Settled(_with(plan, choices.by_job(model)), model, allocation)
    machines = machines_of(on_cluster=on_cluster)
    tuning = TuningContext(
        run,
        plan,
        opened(model),
        hardware,
        allocation,
        machines=machines,
        on_cluster=on_cluster,
        say=say,
    )
    known, path = load_profile(tuning), _choice_path(run, plan, is_here=not on_cluster, say=say)
    profile = known
    try:
        chosen = _read_choice(run.store, path)
    except FileNotFoundError:
        measures &= not has_known_rows
        chosen, profile = _choose(tuning, known, model, published, measures=measures)
        token = uuid.uuid4().hex
        data = sealed({"token": token, **chosen.to_dict()})
        if run.store.create_once(path, data, token) is CreateOutcome.OTHER:
            try:
                chosen = _read_choice(run.store, path)
            except FileNotFoundError:  # the stored choice is damaged
                run.store.put(path, data)
        if chosen.reason in ("measured", "known") or profile != known:
            log.info("%s", chosen.text)
    way = chosen.way
    wanted, settled = run.job.model, as_tried(model, way)
    plan = replace(
        _with(plan, chosen),
        batch_size=wanted.batch_size or way.batch_size or plan.batch_size,
        batch_tokens=wanted.batch_tokens or way.batch_tokens or plan.batch_tokens,
    )
    return Settled(plan, settled, allocation)


def needs_tuning(model: ModelSpec) -> bool:
    """Tell whether a job leaves runtime, precision or calibration to `auto`."""
    return AUTO in (model.runtime, model.precision) or model.precision == INT8


def opened(model: ModelSpec) -> ModelSpec:
    """Return a model with the runtime `auto` if its job sets none."""
    return replace(model, runtime=AUTO) if model.takes_fastest else model


def foresee(run: RunContext, plan: Plan, model: ModelSpec) -> Choice:
    """Return the choice that a run on this machine would make, as far as known; needs no Ray."""
    try:
        path = _choice_path(run, plan, is_here=run.options.address is None)
        return _read_choice(run.store, path)
    except FileNotFoundError:
        if needs_tuning(model) or model.input.is_approximate:
            text = "a run uses known results, and measures the rest for a tenth of its time"
            name = f"{model.runtime} {model.precision}"
            return replace(choices.by_job(model), reason="measured", text=f"{name}: {text}")
    if not model.takes_fastest:
        return choices.by_job(model)
    if run.job.resources.num_gpus or run.options.address is not None:
        where = "the cluster" if run.options.address is not None else "the GPU that the run finds"
        text = f"{EAGER} {FP32}, or a runtime known to be faster on {where}"
        return replace(choices.by_job(model), reason="unknown", text=text)
    hardware = embedded_hardware()
    allocation = allocate(run.job.resources, hardware, cost=cost_of(run.job.source))
    machines = machines_of(on_cluster=False)
    tuning = TuningContext(run, plan, opened(model), hardware, allocation, machines=machines)
    return _settle(tuning, load_profile(tuning))


def _choice_path(
    run: RunContext, plan: Plan, *, is_here: bool, say: Callable[[str], None] = log.info
) -> str:
    """Return the path of a plan's choice.

    A device on which the first choice cannot run has a path of its own.
    """
    path = run.layout.choice(plan.fingerprint)
    try:
        begun = _read_choice(run.store, path).way
    except FileNotFoundError:
        return path
    is_on_gpu, find = bool(run.job.resources.num_gpus), missing_reason if is_here else unfit_reason
    reason = find(runtime_of(begun.runtime), begun.precision, is_on_gpu=is_on_gpu)
    if not reason:
        return path
    way = f"{begun.runtime} {begun.precision}, with which the work began"
    say(f"{way}, cannot run here: {reason}; choosing anew")
    return run.layout.choice(plan.fingerprint, "gpu" if is_on_gpu else "cpu")


def _with(plan: Plan, chosen: Choice) -> Plan:
    """Return the plan with the choice in its model."""
    way = chosen.way
    figures: dict[str, Any] = {
        "runtime": way.runtime,
        "precision": way.precision,
        "choice": chosen.facts(),
    }
    if way.num_compared:
        figures |= {"agreement_pct": way.agreement_pct, "agreement_worst": way.worst}
    if way.artefact_sha256:
        figures["artefact_sha256"] = way.artefact_sha256
    return replace(plan, model={**plan.model, **figures})


def _choose(
    tuning: TuningContext,
    profile: Profile,
    model: ModelSpec,
    published: Mapping[str, Any] | None,
    *,
    measures: bool,
) -> tuple[Choice, Profile]:
    """Choose for a plan without a choice; return the profile after that, too."""
    if published is not None:
        named = ("runtime", "precision", "artefact_sha256")
        return choices.begun(*(published.get(name) or "" for name in named)), profile
    if not tuning.plan.units:
        return choices.by_job(replace(model, runtime=EAGER, precision=FP32)), profile
    if not model.takes_fastest:
        return _measure(tuning, profile)
    known = profile
    if measures:
        profile = _measure_unasked(tuning, profile)
    chosen = _settle(tuning, profile)
    if chosen.reason == "known" and profile != known:
        chosen = replace(chosen, reason="measured")
    return chosen, profile


def _measure_unasked(tuning: TuningContext, known: Profile) -> Profile:
    """Measure other runtimes at fp32 for a job that sets none, if its run has time for that.

    Only on CPUs, and on machines of one type, so that the figures hold for all actors. A failure
    here does not end the run, which goes on in eager fp32.
    """
    # Their converted models are kept, so that a trial that had too little time is not lost.
    others = [name for name in _rivals(tuning) if runtime_of(name).exports]
    if not others or tuning.is_on_gpu or len(tuning.machines) != 1:
        return known
    profile, wanted = known, [(name, FP32) for name in (EAGER, *others)]
    try:
        profile = try_ways(tuning, Budget(is_asked=False), wanted, known)
        if profile != known:
            keep_profile(tuning, profile)
    except PipelineError as error:
        log.warning("other runtimes are not measured: %s", error)
    return profile


def _settle(tuning: TuningContext, profile: Profile) -> Choice:
    """Choose for a job that sets neither runtime nor precision, by the profile."""
    least_pct, others = tuning.job.gates.min_agreement_pct, _rivals(tuning)
    return choices.settled(profile, least_pct, tuning.plan.num_rows, tuning.allocation, others)


def _rivals(tuning: TuningContext) -> list[str]:
    """List the runtimes, other than eager, that can run the model of a job that sets none."""
    is_on_gpu = tuning.is_on_gpu
    usable = {*usable_ways(tuning.model, is_on_gpu=is_on_gpu, is_here=not tuning.on_cluster)}
    return [
        runtime
        for runtime, precision in candidates(tuning.model, is_on_gpu=is_on_gpu)
        if runtime != EAGER and f"{runtime} {precision}" in usable
    ]


def _measure(tuning: TuningContext, profile: Profile) -> tuple[Choice, Profile]:
    """Measure unknown runtimes for a job with `auto`, and choose."""
    budget, wanted = Budget(), candidates(tuning.model, is_on_gpu=tuning.is_on_gpu)
    tried = try_ways(tuning, budget, wanted, profile)
    if tried != profile:
        keep_profile(tuning, tried)  # also if no way can be used
    profile, way = choose_confirmed(tuning, tried, wanted, budget)
    if profile != tried:
        keep_profile(tuning, profile)
    return choices.measured(profile, way), profile


def tune(
    run: RunContext,
    plan: Plan,
    model: ModelSpec,
    hardware: Hardware,
    allocation: Allocation,
    *,
    on_cluster: bool,
    say: Callable[[str], None],
) -> tuple[Profile, Trial]:
    """Measure everything again, store it, and return it with the choice of a run of this plan.

    A job that sets neither runtime nor precision chooses among runtimes at fp32; the others are
    measured for jobs with `auto`.
    """
    all_open = model if needs_tuning(model) else replace(model, runtime=AUTO, precision=AUTO)
    tuning = TuningContext(
        run,
        plan,
        all_open,
        hardware,
        allocation,
        machines=machines_of(on_cluster=on_cluster),
        on_cluster=on_cluster,
        is_command=True,
        say=say,
    )
    budget, is_on_gpu = Budget(is_bounded=False), tuning.is_on_gpu
    wanted = candidates(all_open, is_on_gpu=is_on_gpu, is_command=True)
    tried = try_ways(tuning, budget, wanted, Profile())
    if model.takes_fastest:
        wanted = candidates(opened(model), is_on_gpu=is_on_gpu, is_command=True)
    profile, way = choose_confirmed(tuning, tried, wanted, budget)
    kept = load_profile(tuning)
    for trial in profile.ways:
        kept = kept.with_way(trial)
    keep_profile(tuning, kept)
    return kept, way


def _read_choice(store: Store, path: str) -> Choice:
    """Read a choice; raises FileNotFoundError if it is missing or damaged."""
    data = store.read_bytes(path)
    try:
        return Choice.from_dict(unsealed(data))
    except (KeyError, TypeError, ValueError) as error:
        log.warning("%s: damaged, so it counts as missing: %s", store.url(path), error)
        raise FileNotFoundError(path) from error
