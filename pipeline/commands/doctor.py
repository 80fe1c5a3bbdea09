"""`pipeline doctor`: look at all that a run will need, and say what is wrong and what is right.

Nothing is started and nothing is published; a cluster that is named is logged in to. A check that
fails ends with the exit code that a run would end with.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from pipeline.commands.doctor_machine import Finding, FindingStatus, guarded, look_at_machine
from pipeline.core.errors import JobError
from pipeline.execution.cluster.login import log_in
from pipeline.execution.embedded.patches import describe
from pipeline.inference.runtimes import all_runtimes, runtime_of
from pipeline.inference.runtimes.base import missing_reason
from pipeline.job.job import Job
from pipeline.job.model import AUTO
from pipeline.plan.allocation import Hardware, allocate
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.one_row import Tried, try_row
from pipeline.runs.prepare import job_model, prepare
from pipeline.runs.sink_below_source import require_apart
from pipeline.sources.inputs import describe_no_input, list_inputs
from pipeline.storage.store import Store

_MANY_ROWS = 2**30
_MAX_OFF_S = 60.0


def examine(
    job: Job | None, options: RunOptions, *, tries: bool = False
) -> tuple[dict[str, Any], int]:
    """Look at this machine, at the cluster's address, and at all that a job names.

    Args:
        job: None looks at the machine only.
        options: The cluster's address, and what may be imported.
        tries: Build the model and predict one row, if source and model are fine so far.

    Returns:
        The findings, and the exit code of the first that fails; 0 if none does.
    """
    checks = [*look_at_machine(options.address)]
    address = options.address
    if address is not None:
        checks.append(guarded("cluster", lambda: log_in(address)))
    # After the login: Ray reads what the environment says of tokens when it is imported.
    checks.append(guarded("ray patches", describe))
    if job is not None:
        checks += _job(job, options, tries=tries)
    statuses = [check.status for check in checks]
    worst: FindingStatus = "fail" if "fail" in statuses else "warn" if "warn" in statuses else "ok"
    shown = [{k: v for k, v in asdict(check).items() if k != "exit_code"} for check in checks]
    code = next((check.exit_code for check in checks if check.status == "fail"), 0)
    return {"status": worst, "checks": shown}, code


def _job(job: Job, options: RunOptions, *, tries: bool) -> Iterator[Finding]:
    sink = guarded("sink", lambda: _sink(job))
    yield sink
    if sink.status == "ok":
        yield _clock(job)
    source = guarded("source", lambda: _source(job))
    yield source
    model = guarded("model", lambda: _model(job, options))
    yield model
    if tries and source.status == model.status == "ok":
        yield _one_row(job, options)
    yield guarded("runtime", lambda: _runtime(job))
    if options.address is None:
        yield guarded("resources", lambda: _resources(job))


def _sink(job: Job) -> str:
    store = Store(job.sink.uri, job.sink.storage_options)
    store.probe(single_writer=job.run.single_writer)
    return f"{store.url('')}: can be written, and creates an object once"


def _clock(job: Job) -> Finding:
    """Compare the clocks: object stores refuse requests of a quarter of an hour ago."""
    store = Store(job.sink.uri, job.sink.storage_options)
    off_s = (dt.datetime.now(dt.UTC) - store.now()).total_seconds()
    if abs(off_s) > _MAX_OFF_S:
        hint = "from 15 minutes on object stores refuse: set this machine's clock"
        return Finding("clock", "warn", f"{off_s:+.0f} s off the sink's; {hint}")
    return Finding("clock", "ok", "goes with that of the sink")


def _source(job: Job) -> str:
    require_apart(job.source, Store(job.sink.uri, job.sink.storage_options))
    inputs = list_inputs(job.source, max_extent_rows=_MANY_ROWS, may_be_empty=job.gates.allow_empty)
    if not inputs.shards:
        raise JobError(f"source.uri: {describe_no_input(job.source, inputs.skipped)}")
    found = f"{job.source.uri}: {len(inputs.shards)} shards, {inputs.num_bytes} bytes"
    skipped = inputs.skipped
    return f"{found}; skipped: {skipped.describe()}" if skipped.total else found


def _model(job: Job, options: RunOptions) -> str:
    spec = job_model(job, options.allow_import)
    return f"{spec.name}: weights {(spec.weights_sha256 or 'are its own')[:12]}"


def _one_row(job: Job, options: RunOptions) -> Finding:
    """Try one row from source to prediction; a failure of the model is a warning."""
    tried: list[Tried] = []

    def look() -> str:
        tried.append(_try(job, options))
        return tried[0].found

    check = guarded("one row", look)
    return replace(check, status="warn") if tried and tried[0].status != "ok" else check


def _try(job: Job, options: RunOptions) -> Tried:
    return try_row(job, *prepare(RunContext.of(job, options)))


def _runtime(job: Job) -> str:
    model, is_on_gpu = job.model, job.resources.num_gpus > 0
    if model.runtime != AUTO and model.precision != AUTO:
        runtime = runtime_of(model.runtime)
        reason = missing_reason(runtime, model.precision, is_on_gpu=is_on_gpu)
        if reason:
            raise JobError(f"model.runtime = {model.runtime!r}: {reason}")
        return f"{model.runtime} {model.precision}"
    usable = [
        f"{runtime.name} {precision}"
        for runtime in all_runtimes()
        for precision in runtime.precisions
        if model.runtime in (AUTO, runtime.name) and model.precision in (AUTO, precision)
        if not missing_reason(runtime, precision, is_on_gpu=is_on_gpu)
    ]
    if not usable:
        raise JobError("model.runtime, model.precision: nothing here runs that; see extras")
    return f"to be measured: {', '.join(usable)}"


def _resources(job: Job) -> str:
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cpus = len(os.sched_getaffinity(0))
    hardware = Hardware(1, float(cpus), float(gpus))
    found = allocate(job.shares, hardware, is_table=job.source.is_table)
    return f"{found.max_actors} actors of {found.actor_threads} threads fit this machine"
