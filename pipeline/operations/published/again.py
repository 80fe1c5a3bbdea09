"""Predict rows of a version again, from its manifest and its stored plan, on this machine's CPU."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from pipeline.commit.manifest import Manifest, Part
from pipeline.commit.parts.carried.version import CarriedVersion, OldRows
from pipeline.commit.parts.part_reader import open_part
from pipeline.core.cache.cpu import processor_name
from pipeline.core.errors import InfraError, JobError
from pipeline.core.hive_paths import restore
from pipeline.core.schema import ROW_ID, URI
from pipeline.execution.stages import Preprocessing
from pipeline.inference.engines import open_engine
from pipeline.inference.runtimes.choice import require_usable
from pipeline.inference.settled_scores import scores_path
from pipeline.job.gates import Gates
from pipeline.job.job import Job
from pipeline.job.source import Source
from pipeline.models.agreement import AgreementLimits
from pipeline.models.spec import FP32, ModelSpec
from pipeline.models.tasks.base import TaskSpec
from pipeline.operations.published.output import Partition
from pipeline.planning.plan import Plan
from pipeline.runs.builders import plain_predictor_config
from pipeline.runs.preparing.prepare import job_model
from pipeline.runs.retry.shards import as_found
from pipeline.runs.samples.inputs import are_fetched, by_shard, fetch_rows, read_rows
from pipeline.sources.extents import Extent
from pipeline.sources.rows import Reader
from pipeline.storage.store import Store

_EXACT = AgreementLimits(0.001, 0.99999, 0.001, allows_ties=True)
"""Of fp32 on the same processor; batches of other sizes change a hundredth of that."""
_ROWS_AT_ONCE = 256


def published_job(partition: Partition, plan: Plan) -> Job:
    """Return the job that a version was predicted by, as far as its manifest tells.

    Raises:
        JobError: The manifest is older than that, or the job is none here.
    """
    manifest, options = partition.manifest, dict(partition.source_options)
    where = f"{partition.store.url('')}: partition {partition.name}"
    if not manifest.sections or not manifest.source:
        raise JobError(
            f"{where}: version {manifest.number} does not say how it was predicted, as older ones "
            "do not; a version that is published now does"
        )
    sections = json.loads(json.dumps(manifest.sections))
    sections["model"]["storage_options"] = options
    source = Source.from_published(manifest.source, plan.source_root, options)
    sections |= {"source": source.model_dump(mode="json", exclude_unset=True)}
    sections |= {"sink": {"uri": partition.store.uri}}
    try:
        return Job.model_validate_json(json.dumps(sections))
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        at = ".".join(map(str, found["loc"]))
        raise JobError(f"{where}: {at}: {found['msg'].removeprefix('Value error, ')}") from None


def published_model(job: Job, manifest: Manifest, plan: Plan, allow: Sequence[str]) -> ModelSpec:
    """Return the model as it is now, run as the version was.

    Raises:
        JobError: It cannot be found, or is refused.
    """
    pinned = job.model.weights_sha256 is not None  # another digest is what is to be told
    loose = job.model_copy(update={"model": job.model.model_copy(update={"weights_sha256": None})})
    spec = job_model(loose if pinned else job, allow).fitted(plan.fields)
    way = {name: manifest.model[name] for name in ("runtime", "precision")}
    return replace(spec, task=_with_lengths(spec.task, manifest.model["task"]), **way)


def _with_lengths(task: TaskSpec, known: Mapping[str, Any]) -> TaskSpec:
    """Return a task with the lengths of vectors that a run has measured."""
    heads = dict(known.get("heads", ()))
    return replace(
        task,
        embedding_dim=known.get("embedding_dim", task.embedding_dim),
        heads=tuple((name, _with_lengths(each, heads.get(name, {}))) for name, each in task.heads),
    )


@dataclass(frozen=True)
class Way:
    """How rows are predicted again."""

    spec: ModelSpec
    limits: AgreementLimits
    said: str

    @classmethod
    def of(cls, spec: ModelSpec, manifest: Manifest) -> Way:
        """Choose the version's own runtime and precision if they can be had on a CPU."""
        here = processor_name()
        loose = AgreementLimits.of(Gates()).with_ties()
        try:
            require_usable(spec, is_on_gpu=False, is_here=True)
        except JobError as error:
            return cls(spec.as_reference(), loose, f"eager fp32 on {here}: {error}")
        told = f"{spec.runtime} {spec.precision} on {here}"
        is_exact = spec.precision == FP32 and not spec.input.is_approximate
        if is_exact and all(device == here for device in manifest.devices):
            return cls(spec, _EXACT, told)
        if spec.precision == "int8":  # calibrated on rows of the run
            return cls(spec.as_reference(), loose, f"eager fp32 on {here}, instead of int8")
        return cls(spec, loose, f"{told}, as near as gates ask by default")


@dataclass(frozen=True)
class Sample:
    """Some predictions of a version."""

    rows: pa.Table
    """`row_id`, `uri` and the columns of the task."""
    parts: tuple[Part, ...]
    """(N,): the part of each."""


def sample_of(partition: Partition, columns: Sequence[str], num_rows: int) -> Sample:
    """Choose rows from all over a version, the same ones each time, and read them.

    Raises:
        NotReadable: A part is gone, or damaged.
    """
    version = CarriedVersion(partition.layout, partition.manifest)
    old, hive = OldRows.of([version]), partition.manifest.partition_columns
    names = [ROW_ID, URI, *columns]
    chosen = random.Random(partition.manifest.token).sample(  # noqa: S311  # no secret
        range(version.num_rows), min(num_rows, version.num_rows)
    )
    numbers = np.sort(np.array(chosen, np.int64))
    at, pieces, parts = old.part_of(numbers), list[pa.Table](), list[Part]()
    for index in np.unique(at).tolist():
        part, own = old.parts[index], numbers[at == index] - old.starts[index]
        rows = part.find(partition.store, lambda path, own=own: _read(partition.store, path, own))
        pieces.append(restore(rows, part.part.path, hive).select(names))
        parts += [part.part] * len(own)
    return Sample(pa.concat_tables(pieces) if pieces else pa.table({}), tuple(parts))


def _read(store: Store, path: str, numbers: Any) -> pa.Table:
    """Read rows of a part by their numbers, ascending: only the row groups that have some."""
    with open_part(store, path) as file:
        sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
        starts = np.cumsum([0, *sizes])
        groups = np.searchsorted(starts, numbers, "right") - 1
        return pa.concat_tables(
            [
                file.read_row_group(group).take(pa.array(numbers[groups == group] - starts[group]))
                for group in np.unique(groups).tolist()
            ]
        )


@dataclass
class Inputs:
    """The input of rows as it is now."""

    tables: list[pa.Table]
    changed: dict[str, str]
    """Row id -> how its input is not what was planned, as far as size and version tell."""


def read_inputs(job: Job, plan: Plan, asked: Sequence[tuple[str, str]], where: str) -> Inputs:
    """Read the input of rows, given as id and URI, also of shards that have changed."""
    store = Store(plan.source_root, job.source.storage_options)
    reader = Reader(store, job.source, pa.schema([]), plan.fields)
    found = Inputs([], {})
    if are_fetched(reader, plan):
        found.tables.append(fetch_rows(reader, asked))
        return found
    for extents, ids in by_shard(reader, plan, asked, where):
        path = extents[0].path
        file = store.stat(path)
        if file is None:
            found.changed |= dict.fromkeys(ids, f"{store.url(path)} is gone")
            continue
        now = [as_found(extent, file) for extent in extents]
        is_same = [_identity(each) for each in now] == [_identity(each) for each in extents]
        if not is_same:
            found.changed |= dict.fromkeys(ids, f"{store.url(path)} has another size or time")
        try:
            found.tables += read_rows(reader, plan, now, ids)
        except (InfraError, JobError) as error:
            if is_same:
                raise
            found.changed |= dict.fromkeys(ids, str(error))
    return found


def _identity(extent: Extent) -> tuple[int, str]:
    return extent.size_bytes, extent.version


def predict(
    partition: Partition, job: Job, plan: Plan, spec: ModelSpec, tables: Sequence[pa.Table]
) -> pa.Table:
    """Predict rows of the input; returns them with the columns of `staged_schema`.

    Raises:
        JobError: The model cannot be loaded, or has other tensors than the version's.
    """
    store, pin = partition.store, partition.layout.tensors(plan.fingerprint)
    threads = len(os.sched_getaffinity(0))
    plain = replace(plan, pass_through=pa.schema([]))
    config = replace(
        plain_predictor_config(plain, spec, job.model.batch_size or plan.batch_size, threads),
        models=store,
        scores_path=scores_path(spec),
        pin=None if spec.has_weights or not store.exists(pin) else pin,
    )
    preprocessing = Preprocessing.of(job.source, spec.input, threads, plan.fields)
    predictor = open_engine(config)
    done = [
        predictor.predict(rows if preprocessing is None else preprocessing({}, rows), {})
        for rows in _cut(tables)
    ]
    return pa.concat_tables(done)


def _cut(tables: Sequence[pa.Table]) -> Iterator[pa.Table]:
    whole = pa.concat_tables(tables)
    for start in range(0, whole.num_rows, _ROWS_AT_ONCE):
        yield whole.slice(start, _ROWS_AT_ONCE).combine_chunks()
