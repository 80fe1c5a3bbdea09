"""`auto`: choose the runtime and precision by measurement, on a sample of the job's own rows.

What was measured is kept under `_control/profiles`, by model, transform, hardware and versions.
What was chosen is kept beside the plan and adopted by every rerun, so that measuring again never
changes work that has begun.
"""

from __future__ import annotations

import hashlib
import json
import platform
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipeline.agreement import AgreementLimits
from pipeline.allocation import Allocation, Hardware
from pipeline.errors import InfraError, JobError
from pipeline.layout import model_path
from pipeline.model import (
    CPU_PRECISIONS,
    GPU_PRECISIONS,
    INT8,
    PRECISIONS,
    ModelSpec,
    PredictorConfig,
)
from pipeline.plan import Plan
from pipeline.record import RunContext, package_versions
from pipeline.rows import Reader
from pipeline.storage import CreateOutcome, Store
from pipeline.trial import Trial

AUTO = "auto"
SAMPLE_ROWS = 128
_SAMPLE_UNITS = 4
_PROFILE_VERSION = 2


def settle(
    run: RunContext, plan: Plan, model: ModelSpec, hardware: Hardware, allocation: Allocation
) -> tuple[Plan, ModelSpec]:
    """Say what `auto` means for this plan; without `auto` nothing happens.

    Returns:
        The plan and the model with what runs them; the fingerprint stays.

    Raises:
        JobError: No way to run the model is left.
    """
    is_open = AUTO in (model.runtime, model.precision) or model.precision == INT8
    if not is_open and not model.shrinks:
        return plan, model
    path = f"{run.layout.control}/choice/{plan.fingerprint}.json"
    try:
        chosen = _read_choice(run.store, path)
    except FileNotFoundError:
        trials = measure(run, plan, model, hardware, allocation)
        chosen = choose(trials, run.job.gates.min_agreement_pct, plan.num_rows, allocation)
        token = uuid.uuid4().hex
        data = json.dumps({"token": token, **chosen.to_dict()}).encode()
        if run.store.create_once(path, data, token) is CreateOutcome.OTHER:
            chosen = _read_choice(run.store, path)
    settled = chosen_spec(model, chosen)
    figures = {
        "runtime": chosen.runtime,
        "precision": chosen.precision,
        "agreement_pct": chosen.agreement_pct,
        "agreement_worst": chosen.worst,
        **({"artefact_sha256": chosen.artefact_sha256} if chosen.artefact_sha256 else {}),
    }
    return replace(plan, model={**plan.model, **figures}), settled


def chosen_spec(model: ModelSpec, trial: Trial) -> ModelSpec:
    """Return the model as it was tried."""
    sha256 = trial.artefact_sha256 or None
    return replace(model, runtime=trial.runtime, precision=trial.precision, artefact_sha256=sha256)


def candidates(model: ModelSpec, *, is_on_gpu: bool) -> list[tuple[str, str]]:
    """List the runtimes and precisions that the job leaves open."""
    return [
        (runtime, precision)
        for runtime, precisions in PRECISIONS.items()
        for precision in precisions
        if model.runtime in (AUTO, runtime) and model.precision in (AUTO, precision)
        if precision not in (CPU_PRECISIONS if is_on_gpu else GPU_PRECISIONS)
    ]


def choose(
    trials: Sequence[Trial], min_agreement_pct: float, num_rows: int | None, allocation: Allocation
) -> Trial:
    """Take what ends first, starting up included, among what agrees.

    Args:
        trials: What was measured.
        min_agreement_pct: What agrees less is left out.
        num_rows: Rows of the run; None where nobody knows: only the rate counts.
        allocation: How many actors share the rows.
    """
    usable = [t for t in trials if not t.problem and t.agreement_pct >= min_agreement_pct]
    if not usable:
        problems = "; ".join(
            f"{t.runtime} {t.precision}: {t.problem or f'{t.agreement_pct:.1f}% of rows agree'}"
            for t in trials
        )
        if not trials:
            raise JobError("model.precision: no runtime has it on this device")
        raise JobError(
            f"nothing that was tried agrees on {min_agreement_pct:g}% of the sampled rows "
            f"(gates.min_agreement_pct) with eager fp32 and whole decoding: {problems}"
        )

    def seconds(trial: Trial) -> float:
        rows = float("inf") if num_rows is None else num_rows / allocation.max_actors
        if rows == float("inf"):
            return -trial.rows_per_s
        return trial.load_s + rows / trial.rows_per_s

    return min(usable, key=seconds)


def measure(
    run: RunContext,
    plan: Plan,
    model: ModelSpec,
    hardware: Hardware,
    allocation: Allocation,
    *,
    again: bool = False,
) -> list[Trial]:
    """Return the trials of a stored profile, or try everything and store it.

    Args:
        again: Measure even where there is a profile.
    """
    limits = AgreementLimits.of(run.job.gates)
    key = _profile_key(model, plan.batch_size, hardware, allocation, limits)
    path = f"_control/profiles/{key}.json"
    if not again:
        stored = _read_profile(run.store, path)
        if stored is not None:
            return stored
    reader = Reader(
        Store(plan.source_root, run.job.source.storage_options),
        run.job.source,
        plan.pass_through,
        plan.num_features,
    )
    config = PredictorConfig(
        spec=model,
        batch_size=run.job.model.batch_size or plan.batch_size,
        num_gpus=allocation.actor_gpus,
        num_threads=allocation.actor_threads,
        pass_through=plan.pass_through,
        num_features=plan.num_features,
        models=run.store,
    )
    trials = _try_all(reader, plan, model, config, limits, allocation)
    document = {"version": _PROFILE_VERSION, "trials": [trial.to_dict() for trial in trials]}
    run.store.put(path, json.dumps(document).encode())
    return trials


def _try_all(
    reader: Reader,
    plan: Plan,
    model: ModelSpec,
    config: PredictorConfig,
    limits: AgreementLimits,
    allocation: Allocation,
) -> list[Trial]:
    import ray
    from ray.exceptions import RayError

    from pipeline.ray_tasks import ray_errors
    from pipeline.trial_run import calibrate, sample_inputs, try_out

    # One after the other, each in a process of its own that ends with it.
    options: dict[str, Any] = {
        "num_cpus": allocation.actor_cpus,
        "num_gpus": allocation.actor_gpus or None,
        "max_retries": 0,
        "max_calls": 1,
    }
    step = max(1, len(plan.units) // _SAMPLE_UNITS)
    units = plan.units[::step][:_SAMPLE_UNITS]
    plain = model.as_reference()

    def sample_of(spec: ModelSpec) -> Any:
        task = ray.remote(**options)(sample_inputs)
        return ray.put(ray.get(task.remote(reader, units, replace(config, spec=spec), SAMPLE_ROWS)))

    def attempt(spec: ModelSpec, sample: Any, reference: Any) -> tuple[Trial, Any]:
        task = ray.remote(**options)(try_out)
        return ray.get(task.remote(replace(config, spec=spec), sample, reference, limits))  # type: ignore[no-any-return]

    with ray_errors():
        sample = sample_of(plain)
        first, found = attempt(plain, sample, None)
        if first.problem:
            raise JobError(f"model: eager fp32 cannot predict the sample: {first.problem}")
        reference = ray.put(found)
        if model.shrinks:
            sample = sample_of(model)

    def calibrated() -> tuple[str, str]:
        return ray.get(ray.remote(**options)(calibrate).remote(config, sample))  # type: ignore[no-any-return]

    trials = []
    is_on_gpu = bool(allocation.actor_gpus)
    for spec, problem in _ways(model, candidates(model, is_on_gpu=is_on_gpu), calibrated):
        if spec == plain:
            trials.append(first)
            continue
        if problem:
            trials.append(Trial(spec.runtime, spec.precision, problem=problem))
            continue
        try:
            trials.append(attempt(spec, sample, reference)[0])
        except RayError as error:
            died = f"died: {type(error).__name__}"
            trials.append(Trial(spec.runtime, spec.precision, problem=died))
    return trials


def _ways(
    model: ModelSpec,
    open_to: Sequence[tuple[str, str]],
    calibrate: Callable[[], tuple[str, str]],
) -> Iterator[tuple[ModelSpec, str]]:
    """Yield each way to run the model, and '' or why it cannot be tried; int8 is made once."""
    from ray.exceptions import RayError

    made: tuple[str, str] | None = None
    for runtime, precision in open_to:
        spec, problem = replace(model, runtime=runtime, precision=precision), ""
        if precision == INT8:
            try:
                made = made or calibrate()
            except RayError as error:
                made = "", f"calibrating died: {type(error).__name__}"
            spec, problem = replace(spec, artefact_sha256=made[0]), made[1]
        yield spec, problem


def _read_choice(store: Store, path: str) -> Trial:
    document = json.loads(store.read_bytes(path))
    try:
        document.pop("token")
        return Trial(**document)
    except (KeyError, TypeError) as error:
        raise InfraError(f"{store.url(path)}: damaged: {error}") from None


def _read_profile(store: Store, path: str) -> list[Trial] | None:
    try:
        document = json.loads(store.read_bytes(path))
        if document["version"] != _PROFILE_VERSION:
            return None
        trials = [Trial(**trial) for trial in document["trials"]]
        models = {model_path(t.artefact_sha256) for t in trials if t.artefact_sha256}
        return trials if all(map(store.exists, models)) else None
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None  # measured anew


def _profile_key(
    model: ModelSpec,
    batch_size: int,
    hardware: Hardware,
    allocation: Allocation,
    limits: AgreementLimits,
) -> str:
    facts = {
        "model": model.to_dict(),
        "batch_size": batch_size,
        "cpu": _cpu_name(),
        "gpu": hardware.gpu_name,
        "threads": allocation.actor_threads,
        "gpus": allocation.actor_gpus,
        "limits": asdict(limits),
        "versions": package_versions(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
