"""`auto`: choose runtime, precision, batch size and layout by measurement on the job's own rows.

What was measured is kept under `_control/profiles`, by model, transform, hardware and versions.
What was chosen is kept beside the plan and adopted by every rerun, so that measuring again never
changes work that has begun.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from dataclasses import asdict, replace
from typing import NamedTuple

from pipeline.commit.provenance import package_versions
from pipeline.core.cpu import describe_processor
from pipeline.core.documents import known_fields
from pipeline.core.errors import InfraError, JobError
from pipeline.inference.model_store import model_path
from pipeline.inference.runtimes import runtime_versions
from pipeline.inference.runtimes.int8 import INT8
from pipeline.job.model import AUTO
from pipeline.models.agreement import AgreementLimits
from pipeline.models.spec import ModelSpec
from pipeline.plan.allocation import Allocation, Hardware, allocate
from pipeline.plan.plan import Plan
from pipeline.runs.context import RunContext
from pipeline.runs.tuning.confirmation import choose_confirmed
from pipeline.runs.tuning.context import Sample, TuningContext, tuning_context
from pipeline.runs.tuning.layout_trials import finish_profile, pick
from pipeline.runs.tuning.runtime_trials import Profile, try_ways
from pipeline.runs.tuning.selection import as_tried, choose, search_budget_s
from pipeline.runs.tuning.trial import Trial
from pipeline.storage.create_once import CreateOutcome
from pipeline.storage.store import Store

_PROFILE_VERSION = 4


class Resolved(NamedTuple):
    """How a plan is carried out."""

    plan: Plan
    """With what was chosen; the fingerprint stays."""
    model: ModelSpec
    """With the runtime and precision that were chosen."""
    allocation: Allocation


def resolve_auto(
    run: RunContext, plan: Plan, model: ModelSpec, hardware: Hardware, allocation: Allocation
) -> Resolved:
    """Say what `auto` means for this plan; without `auto` nothing happens.

    Raises:
        JobError: No way to run the model is left.
    """
    if not is_open(model) and not model.input.is_approximate:
        return Resolved(plan, model, allocation)
    tuning = tuning_context(run, plan, model, hardware, allocation)
    profile = load_profile(run, tuning)
    path = f"{run.layout.control}/choice/{plan.fingerprint}.json"
    try:
        chosen = _read_choice(run.store, path)
    except FileNotFoundError:
        chosen = _choose_anew(run, tuning, profile)
        token = uuid.uuid4().hex
        data = json.dumps({"token": token, **chosen.to_dict()}).encode()
        if run.store.create_once(path, data, token) is CreateOutcome.OTHER:
            chosen = _read_choice(run.store, path)
    if profile is not None:
        batches = [t for t in profile.batches if not t.problem and t.is_like(chosen)]
        run.record.tuned({t.batch_tokens or t.batch_size: t.rows_per_s for t in batches})
    settled = as_tried(model, chosen)
    figures = {
        "runtime": chosen.runtime,
        "precision": chosen.precision,
        "agreement_pct": chosen.agreement_pct,
        "agreement_worst": chosen.worst,
        **({"artefact_sha256": chosen.artefact_sha256} if chosen.artefact_sha256 else {}),
    }
    wanted = run.job.model
    plan = replace(
        plan,
        model={**plan.model, **figures},
        batch_size=wanted.batch_size or chosen.batch_size or plan.batch_size,
        batch_tokens=wanted.batch_tokens or chosen.batch_tokens or plan.batch_tokens,
    )
    return Resolved(plan, settled, _divide(run, hardware, allocation, chosen))


def is_open(model: ModelSpec) -> bool:
    """Tell whether a job leaves runtime, precision or calibration to `auto`."""
    return AUTO in (model.runtime, model.precision) or model.precision == INT8


def _divide(
    run: RunContext, hardware: Hardware, allocation: Allocation, chosen: Trial
) -> Allocation:
    """Divide the cluster as it was found best; what the job says itself stays."""
    if not chosen.threads:
        return allocation
    resources, is_table = run.job.shares, run.job.source.is_table
    if run.job.resources.num_gpus:
        share = {"actors_per_gpu": chosen.actors}
        return allocate(resources.model_copy(update=share), hardware, is_table=is_table)
    found = {"num_cpus": float(chosen.threads), "decode_in": chosen.decode_in}
    left_out = {"num_cpus": resources.num_cpus is None, "decode_in": resources.decode_in == AUTO}
    changes = {name: value for name, value in found.items() if left_out[name]}
    return allocate(resources.model_copy(update=changes), hardware, is_table=is_table)


def _choose_anew(run: RunContext, tuning: TuningContext, profile: Profile | None) -> Trial:
    num_rows = tuning.plan.num_rows
    if profile is None or not profile.is_enough(_budget_left_s(tuning, profile)):
        before = profile or Profile(())
        found = try_ways(tuning, Sample(tuning), num_rows, before.ways)
        profile = replace(found, batches=before.batches, layouts=before.layouts)
        keep_profile(run, tuning, profile)  # also if nothing of it can be used
    ways, way = choose_confirmed(tuning, profile.ways, num_rows)
    if ways != profile.ways:
        profile = replace(profile, ways=ways)
        keep_profile(run, tuning, profile)
    return pick(profile, way, tuning)


def _budget_left_s(tuning: TuningContext, profile: Profile) -> float:
    """Return how long this run would look for more than the profile has."""
    least_pct, num_rows = tuning.job.gates.min_agreement_pct, tuning.plan.num_rows
    try:
        best = choose(profile.ways, least_pct, num_rows, tuning.allocation)
    except JobError:  # nothing of it can be used
        return math.inf
    return search_budget_s(best, num_rows, tuning.allocation)


def tune(
    run: RunContext, plan: Plan, model: ModelSpec, hardware: Hardware, allocation: Allocation
) -> tuple[Profile, Trial]:
    """Measure everything again, store it, and return what a run of this plan would choose."""
    tuning = tuning_context(run, plan, model, hardware, allocation)
    sample = Sample(tuning)
    ways, way = choose_confirmed(tuning, try_ways(tuning, sample, None).ways, plan.num_rows)
    profile = replace(finish_profile(tuning, sample, way), ways=ways)
    keep_profile(run, tuning, profile)
    return profile, pick(profile, way, tuning)


def _read_choice(store: Store, path: str) -> Trial:
    document = json.loads(store.read_bytes(path))
    try:
        document.pop("token")
        return Trial(**known_fields(Trial, document))
    except (KeyError, TypeError) as error:
        raise InfraError(f"{store.url(path)}: damaged: {error}") from None


def load_profile(run: RunContext, tuning: TuningContext) -> Profile | None:
    """Return what was measured for this model on such hardware, if anything was."""
    try:
        document = json.loads(run.store.read_bytes(_profile_path(tuning)))
        if document["version"] != _PROFILE_VERSION:
            return None
        profile = Profile.from_dict(document)
        models = {model_path(way.artefact_sha256) for way in profile.ways if way.artefact_sha256}
        return profile if all(map(run.store.exists, models)) else None
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None  # measured anew


def keep_profile(run: RunContext, tuning: TuningContext, profile: Profile) -> None:
    """Store what was measured, for other runs."""
    document = {"version": _PROFILE_VERSION, **profile.to_dict()}
    run.store.put(_profile_path(tuning), json.dumps(document).encode())


def _profile_path(tuning: TuningContext) -> str:
    """Name a profile by all that its figures depend on."""
    allocation = tuning.allocation
    facts = {
        "model": tuning.model.to_dict(),
        "batch_size": tuning.config.batch_size,
        **({"batch_tokens": tuning.config.batch_tokens} if tuning.config.batch_tokens else {}),
        "cpu": describe_processor(),
        "gpu": tuning.hardware.gpu_name,
        "node_cpus": tuning.node_cpus,
        "threads": allocation.actor_threads,
        "gpus": allocation.actor_gpus,
        "limits": asdict(AgreementLimits.of(tuning.job.gates)),
        "versions": {**package_versions(), **runtime_versions()},
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    return f"_control/profiles/{key}.json"
