"""`pipeline chaos`: the user's own job over a copy of a sample of its inputs, with seeded faults.

Everything happens in a scratch folder; what is the user's is only read. The sample goes through an
undisturbed run, whose output is the reference, and then through runs whose store fails and whose
processes are killed, until one of them publishes. What that one published is verified and compared
with the reference, row by row.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
import random
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import pyarrow as pa

from pipeline.commands.chaos.compare import (
    Difference,
    Published,
    compare_published,
    not_quarantined,
)
from pipeline.commands.chaos.fault_plan import Injected, ask_for_faults, read_injected
from pipeline.commands.chaos.kills import choose_kills
from pipeline.commands.chaos.processes import (
    Command,
    FinishedRun,
    no_process_left,
    run_once,
    staged_slices,
)
from pipeline.commands.chaos.sample import Sample, take_sample
from pipeline.commands.chaos.table import fault_rows, in_all
from pipeline.commit.layout import Layout
from pipeline.commit.manifest import current_manifest
from pipeline.commit.published.read import read_current, read_part
from pipeline.commit.published.verify import verify_output
from pipeline.core.errors import InfraError, InputMissing, JobError, PipelineError, Stopped
from pipeline.core.schema import QUARANTINE_SCHEMA
from pipeline.gates.golden import EXACT_SCORE_DIFF
from pipeline.job.job import Job
from pipeline.job.reading.dates import date_text
from pipeline.models.agreement import AgreementLimits
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import TaskSpec
from pipeline.process.interrupts import stoppable_body
from pipeline.runs.preparing.prepare import job_model
from pipeline.runs.settled_source import settled_source
from pipeline.storage.store import Store

log = logging.getLogger(__name__)

_SLICES = 25
"""About so many: enough to be killed between them."""
_MAX_ACTORS = 2
_MAX_RUNS = 6
_STEPS = ("judged", "compacted", "placed_part", "after_log", "before_success")
"""Failpoints of publishing; the driver kills itself at one of them."""
_SHOWN_IDS = 20


@dataclass(frozen=True)
class Chaos:
    """What was asked for."""

    job: Job
    path: str
    date: dt.date
    overrides: Sequence[str]
    allow_import: Sequence[str]
    num_rows: int
    seed: int
    keep: bool


def run_chaos(chaos: Chaos) -> tuple[dict[str, Any], int]:
    """Run the job over a sample, undisturbed and disturbed, and compare.

    Returns:
        What was injected and what was lost, and the exit code: 1 if anything was.

    Raises:
        PipelineError: As of the job itself, if its undisturbed run over the sample fails.
    """
    started, is_needed = perf_counter(), chaos.keep
    folder = Path(tempfile.mkdtemp(prefix="pipeline-chaos-")).resolve()
    lists = (chaos.overrides, chaos.allow_import)
    command = Command(chaos.path, date_text(chaos.date), *lists, folder)
    try:
        with stoppable_body(), no_process_left(folder):
            document = _try_out(chaos, command)
        is_needed = is_needed or document["status"] != "ok"
    except PipelineError as error:
        is_needed = is_needed or not isinstance(error, InputMissing | JobError | Stopped)
        raise
    finally:
        if is_needed:
            log.info("kept: %s", folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    document["seconds"] = round(perf_counter() - started, 1)
    document["scratch"] = str(folder) if is_needed else None
    return document, 0 if document["status"] == "ok" else PipelineError.exit_code


def _try_out(chaos: Chaos, command: Command) -> dict[str, Any]:
    """Run the sample undisturbed and disturbed, and compare what they published."""
    job, folder, layout = chaos.job, command.folder, Layout(chaos.job.sink.partition)
    log.info("copying about %d rows to %s", chaos.num_rows, folder)
    sample = take_sample(settled_source(job), chaos.num_rows, chaos.seed, folder / "input")
    changes = _changes(job, sample, chaos.num_rows + len(sample.spoilt))
    plain, disturbed = folder / "undisturbed", folder / "disturbed"
    log.info("run 1, undisturbed: %d shards, %d spoilt", sample.num_shards, len(sample.spoilt))
    reference = run_once(command, changes, plain, layout)
    if reference.code != 0:
        raise _as_error(reference)
    _take_choices(plain, disturbed, layout)
    runs = _disturb(chaos, command, changes, disturbed, layout)
    before, trouble = _published(plain, layout), _trouble(runs[-1], disturbed, layout)
    try:
        found = _published(disturbed, layout)
    except PipelineError as error:
        trouble = trouble or str(error)
        found = Published(before.predictions.slice(0, 0), before.quarantine.slice(0, 0))
    limits = _limits(job, reference.document)
    task = make_task(_task(job))
    difference = compare_published(before, found, job.source.pass_through, limits, task)
    injected = read_injected(folder)
    return _document(chaos, sample, runs, before, found, difference, trouble, injected)


def _task(job: Job) -> TaskSpec:
    """Return the task of the job, which a model directory may say."""
    if job.model.known_task is not None:
        return TaskSpec(
            job.model.known_task,
            min_score=job.model.min_score,
            max_detections=job.model.max_detections,
        )
    return job_model(job).task


def _changes(job: Job, sample: Sample, num_rows: int) -> dict[str, Any]:
    """Return what must differ from the user's job so that it runs over this many rows."""
    resources = job.resources
    is_open = resources.min_actors is None and resources.max_actors is None
    return {f"source.{name}": value for name, value in sample.changes.items()} | {
        # Gates judge whole partitions; a sample beside them says nothing.
        "gates.error_mode": "warn",
        "gates.reason_mode": "warn",
        "gates.volume.mode": "off",
        "gates.constant.mode": "off",
        "run.slice_rows": math.ceil(num_rows / _SLICES),
        "run.limit_rows": num_rows,
        "run.deadline": None,
        # More would be through with the sample before anybody is killed.
        **({"resources.min_actors": 1, "resources.max_actors": _MAX_ACTORS} if is_open else {}),
    }


def _as_error(done: FinishedRun) -> PipelineError:
    message = f"the job over the sample, undisturbed: {done.error}"
    kinds: list[type[PipelineError]] = PipelineError.__subclasses__()
    return next(
        (kind(message) for kind in kinds if kind.exit_code == done.code), PipelineError(message)
    )


def _take_choices(source: Path, target: Path, layout: Layout) -> None:
    """Let the disturbed runs use what `auto` chose, or measuring again could choose otherwise."""
    for name in ("_control/profiles", "_control/models", f"{layout.control}/choice"):
        if (source / name).exists():
            shutil.copytree(source / name, target / name)


def _disturb(
    chaos: Chaos, command: Command, changes: Mapping[str, Any], sink: Path, layout: Layout
) -> list[FinishedRun]:
    """Run again until a run publishes: the first is killed while it streams, the second later."""
    environment = ask_for_faults(command.folder, chaos.seed)
    num_slices = staged_slices(command.folder / "undisturbed", layout)
    step = random.Random(f"{chaos.seed} step").choice(_STEPS)  # noqa: S311  # hides nothing
    runs: list[FinishedRun] = []
    while len(runs) < _MAX_RUNS and (not runs or runs[-1].code in (-9, InfraError.exit_code)):
        kills = [] if runs else choose_kills(num_slices, chaos.seed)
        dies_at = step if len(runs) == 1 else None
        log.info("run %d, disturbed", len(runs) + 2)
        runs.append(
            run_once(
                command, changes, sink, layout,
                environment=environment, kills=kills, dies_at=dies_at,
            )
        )  # fmt: skip
    return runs


def _trouble(last: FinishedRun, sink: Path, layout: Layout) -> str | None:
    """Return what is wrong with what the last run left; None if nothing is."""
    if last.code != 0:
        return f"the last run failed: {last.error}"
    try:
        verify_output(str(sink), layout.partition, {})
    except PipelineError as error:
        return str(error)
    return None


def _published(sink: Path, layout: Layout) -> Published:
    store = Store(str(sink))
    predictions, manifest = read_current(store, layout), current_manifest(store, layout)
    assert manifest is not None, "it has been read"
    bad = [read_part(store, part) for part in manifest.quarantine_parts]
    return Published(predictions, pa.concat_tables([QUARANTINE_SCHEMA.empty_table(), *bad]))


def _limits(job: Job, report: Mapping[str, Any]) -> AgreementLimits:
    limits = AgreementLimits.of(job.gates).with_ties()
    is_exact = (report.get("model") or {}).get("precision") == "fp32"
    return replace(limits, max_score_diff=EXACT_SCORE_DIFF) if is_exact else limits


def _document(
    chaos: Chaos,
    sample: Sample,
    runs: Sequence[FinishedRun],
    before: Published,
    found: Published,
    difference: Difference,
    trouble: str | None,
    injected: Sequence[Injected],
) -> dict[str, Any]:
    """Return what was injected and lost as the document of the command."""
    at_large, num_spoilt = not_quarantined(sample.spoilt, found), len(sample.spoilt)
    faults = fault_rows(runs, injected, num_spoilt, num_spoilt - len(at_large))
    named = [*difference.lost, *difference.doubled, *difference.changed, *at_large]
    error = trouble
    if named and error is None:
        error = f"{len(named)} rows did not end as they must, such as {named[0]}"
    return {
        "status": "ok" if error is None else "failed",
        "error": error,
        "seed": chaos.seed,
        "rows": before.predictions.num_rows + before.quarantine.num_rows - num_spoilt,
        "shards": sample.num_shards,
        "spoilt": num_spoilt,
        "faults": [*faults, in_all(faults, difference, len(runs), trouble)],
        "lost": len(difference.lost),
        "doubled": len(difference.doubled),
        "changed": len(difference.changed),
        "row_ids": named[:_SHOWN_IDS],
    }
