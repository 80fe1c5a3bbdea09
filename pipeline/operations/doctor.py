"""`pipeline doctor`: check everything that a run needs.

Nothing is published. With an address, it logs in to the cluster and asks each node for its
versions. A failed check has the exit code of the run that would fail.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from pipeline.core.errors import InfraError, JobError
from pipeline.execution.cluster.connect import LOCAL, connect, log_in
from pipeline.execution.cluster.hardware import embedded_hardware, ray_versions, require_one_version
from pipeline.execution.embedded.patches import describe
from pipeline.inference.runtimes.usable import usable_ways
from pipeline.job.job import Job
from pipeline.job.reading.loader import Overrides
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import EAGER, FP32, ModelSpec
from pipeline.operations.arguments import Date, JobLike, load_job, run_options
from pipeline.operations.machine_checks import (
    IDLE_GPU,
    Finding,
    FindingStatus,
    guarded,
    look_at_machine,
)
from pipeline.planning.allocation import Hardware
from pipeline.planning.plan import Plan
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.preparing.one_row import Preview, preview_row
from pipeline.runs.preparing.prepare import check_before_ray, check_hardware, check_runtime, prepare
from pipeline.runs.preparing.settled_source import settled_source
from pipeline.runs.preparing.sink_below_source import require_disjoint
from pipeline.runs.tuning.auto import needs_tuning, opened
from pipeline.sources.formats.table_view import VERSION
from pipeline.sources.listing.inputs import describe_no_input, list_inputs
from pipeline.storage.errors import options_named
from pipeline.storage.store import Store

_MANY_ROWS = 2**30
_MAX_OFF_S = 60.0


def doctor(
    job: JobLike | None = None,
    *,
    date: Date = None,
    overrides: Overrides = (),
    address: str | None = None,
    allow_import: Sequence[str] = (),
    tries: bool = True,
) -> tuple[dict[str, Any], int]:
    """Check this machine, the cluster at an address, and everything that a job names.

    Args:
        job: A job, the path of a job file, or its sections; None: check the machine only.
        date: The value of `${date}`; None: today in UTC.
        overrides: Fields that override those of the job.
        address: The Ray cluster; None: this machine.
        allow_import: Prefixes of the modules that the job may name.
        tries: Build the model and predict one row, if the other checks of source and model pass.

    Returns:
        The findings, and the exit code of the first one that fails; 0 if none does.
    """
    loaded = None if job is None else load_job(job, date=date, overrides=overrides)
    # Unlike a run, doctor accepts the address of a job API.
    options = replace(run_options(None, allow_import), address=address)
    return _examine(loaded, options, tries=tries)


def _examine(job: Job | None, options: RunOptions, *, tries: bool) -> tuple[dict[str, Any], int]:
    address = options.address
    is_here = job is not None and address is None
    wants_gpu = bool(job.resources.num_gpus) if job is not None and is_here else None
    checks = [*look_at_machine(address, wants_gpu=wants_gpu)]
    if address is not None:
        checks.append(guarded("cluster", lambda: log_in(address)))
    # After the login, since Ray reads its token settings when it is imported.
    checks.append(guarded("ray patches", describe))
    if job is not None:
        checks += _job(job, options, tries=tries)
    is_in = any(check.check == "cluster" and check.status == "ok" for check in checks)
    # The nodes can be asked at the head's address, not at a job API or one that Ray finds.
    if is_in and address is not None and "://" not in address and address not in LOCAL:
        checks += _nodes(address, job)
    statuses = [check.status for check in checks]
    worst: FindingStatus = "fail" if "fail" in statuses else "warn" if "warn" in statuses else "ok"
    shown = [{k: v for k, v in asdict(check).items() if k != "exit_code"} for check in checks]
    failed = [check for check in checks if check.status == "fail"]
    document: dict[str, Any] = {"status": worst, "checks": shown}
    if failed:
        first = f"{failed[0].check}: {failed[0].found}"
        document["error"] = f"{len(failed)} of {len(checks)} checks failed; the first is {first}"
    return document, failed[0].exit_code if failed else 0


def _job(job: Job, options: RunOptions, *, tries: bool) -> Iterator[Finding]:
    here = functools.cache(embedded_hardware)
    sink = guarded("sink", lambda: _sink(job))
    yield sink
    if sink.status == "ok":
        yield _clock(job)
    source = guarded("source", lambda: _source(job))
    yield source
    resolve = functools.cache(lambda: resolve_model(job, options.allow_import))
    model = guarded("model", lambda: _model(resolve()))
    yield model
    if model.status == "ok":
        yield guarded("runtime", lambda: _runtime(job, resolve(), options.address))
        if source.status == "ok":
            yield from _of_plan(job, options, tries=tries)
    if options.address is None:
        yield guarded("resources", lambda: check_hardware(job, None, here))


def _sink(job: Job) -> str:
    store = Store(job.sink.uri, job.sink.storage_options)
    with options_named("sink.storage_options"):
        store.probe(single_writer=job.run.single_writer)
    return f"{store.url('')}: writable, with atomic creation of objects"


def _clock(job: Job) -> Finding:
    """Compare the clocks: object stores refuse requests that are 15 minutes off."""
    store = Store(job.sink.uri, job.sink.storage_options)
    off_s = (dt.datetime.now(dt.UTC) - store.now()).total_seconds()
    if abs(off_s) > _MAX_OFF_S:
        hint = "object stores refuse requests that are 15 minutes off: set this machine's clock"
        return Finding("clock", "warn", f"{off_s:+.0f} s off the sink's clock; {hint}")
    return Finding("clock", "ok", "in sync with the sink")


def _source(job: Job) -> str:
    require_disjoint(job.source, Store(job.sink.uri, job.sink.storage_options))
    source, may_be_empty = settled_source(job), job.gates.allow_empty
    inputs = list_inputs(source, max_extent_rows=_MANY_ROWS, may_be_empty=may_be_empty)
    if not inputs.shards:
        why = describe_no_input(job.source, inputs.skipped, inputs.left_out)
        raise JobError(f"source.uri: {why}")
    description = f"{job.source.uri}: {len(inputs.shards)} shards, {inputs.num_bytes} bytes"
    if inputs.table is not None:
        description += f", version {inputs.table.metadata[VERSION].decode()} of the table"
    if any(inputs.left_out):
        description += f"; source.where leaves out {inputs.left_out.describe()}"
    skipped = inputs.skipped
    return f"{description}; skipped: {skipped.describe()}" if skipped.total else description


def _model(spec: ModelSpec) -> str:
    return f"{spec.name}: weights {(spec.weights_sha256 or 'of its own')[:12]}"


def _of_plan(job: Job, options: RunOptions, *, tries: bool) -> Iterator[Finding]:
    """Make the checks of a plan that a run makes before it starts Ray, and try one row."""
    run = RunContext.of(job, options).with_settled_source()
    planned = functools.cache(lambda: prepare(run))
    if job.gates.golden is not None:
        yield guarded("golden rows", lambda: _golden(run, *planned()))
    if tries:
        yield _one_row(run.job, planned)


def _nodes(address: str, job: Job | None) -> Iterator[Finding]:
    """Ask the nodes of a cluster for their versions of Ray, and look for idle GPUs."""
    seen: list[Hardware] = []

    def look() -> str:
        with connect(address) as connection:
            seen.append(connection.hardware)
            versions = ray_versions()
        if not versions:
            raise InfraError(f"Ray at {address}: no worker node has answered")
        require_one_version(versions)
        without = connection.hardware.num_without_cpus
        idle = f" and {without} without CPUs" if without else ""
        return f"{len(versions)} that compute{idle}, Ray {versions[0][1]}"

    yield guarded("nodes", look)
    if seen and job is not None:
        yield from idle_gpus(seen[0], job)


def idle_gpus(hardware: Hardware, job: Job) -> Iterator[Finding]:
    """Warn if a cluster has GPUs and the job uses none."""
    if hardware.gpus and not job.resources.num_gpus:
        names = hardware.gpu_name or "unknown type"
        yield Finding("cluster's gpus", "warn", f"{hardware.gpus:g} ({names}): {IDLE_GPU}")


def _golden(run: RunContext, plan: Plan, model: ModelSpec) -> str:
    golden = check_before_ray(run, plan, model)
    return "none are compared" if golden is None else f"{golden.rows.num_rows} rows"


def _one_row(job: Job, planned: Callable[[], tuple[Plan, ModelSpec]]) -> Finding:
    """Try one row from source to prediction; a failure of the model is a warning."""
    tried: list[Preview] = []

    def look() -> str:
        tried.append(preview_row(job, *planned()))
        return tried[0].message

    check = guarded("one row", look)
    return replace(check, status="warn") if tried and tried[0].status != "ok" else check


def _runtime(job: Job, model: ModelSpec, address: str | None) -> str:
    check_runtime(job, model, address)
    if model.has_other_engine:
        return f"{model.engine} {model.precision}"
    is_on_gpu = bool(job.resources.num_gpus)
    usable = ", ".join(usable_ways(opened(model), is_on_gpu=is_on_gpu, is_here=address is None))
    if model.takes_fastest:
        return f"{EAGER} {FP32}, or the fastest known of {usable}"
    return f"to be measured: {usable}" if needs_tuning(model) else usable
