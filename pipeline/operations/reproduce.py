"""`pipeline reproduce`: predict a sample of what is published again, and say whether it comes out.

What a version depends on is in its manifest and its stored plan: no job file is needed.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from pipeline.commit.manifest import Manifest, Part
from pipeline.commit.parts.carried.version import CarriedVersion
from pipeline.core.errors import JobError
from pipeline.core.printable import num_of
from pipeline.core.schema import ERROR, MESSAGE, ROW_ID, URI
from pipeline.core.versions import changed_versions, environment_versions
from pipeline.job.job import Job
from pipeline.models.spec import ModelSpec
from pipeline.models.tasks import make_task
from pipeline.operations.published.again import (
    Sample,
    Way,
    predict,
    published_job,
    published_model,
    read_inputs,
    sample_of,
)
from pipeline.operations.published.output import Partition, open_output
from pipeline.planning.plan import job_extensions, job_semantics
from pipeline.planning.predictor import why_other
from pipeline.report.showing.printed import Printed
from pipeline.runs.retry.quarantine import read_plan

WEIGHTS, INPUT, LIBRARY, PUBLISHED = "weights", "input", "library", "published value"
_SHOWN, _DIGEST_CHARS = 20, 12
_NOTHING_ELSE = "weights, libraries, and size and time of its input are as they were"


@dataclass(frozen=True)
class DifferingRow:
    """A row that does not come out."""

    row_id: str
    uri: str
    difference: str
    """What was published, and what it is now."""
    causes: Mapping[str, str]
    """`weights`, `input`, `library` or `published value` -> what of it differs; several if several
    do, for which of them has changed the row is unknown then."""


@dataclass(frozen=True)
class Reproduced(Printed):
    """Whether a sample of a version comes out when it is predicted again; prints as a summary."""

    partition: str
    version: int
    num_sampled: int
    differing: tuple[DifferingRow, ...]
    changed: Mapping[str, str]
    """`weights`, `library` -> what of it is not as it was, whether or not rows differ."""
    num_inputs_changed: int
    """Sampled rows whose shard has another size or time, whether or not they differ."""
    predicted_by: str

    @property
    def comes_out(self) -> bool:
        """Whether all rows do, and by the weights that the manifest names."""
        return not self.differing and WEIGHTS not in self.changed

    @property
    def summary(self) -> str:
        """The whole in a line."""
        good = self.num_sampled - len(self.differing)
        head = f"{good} of {num_of(self.num_sampled, 'sampled row')} of {self.partition} version "
        head += f"{self.version} come out"
        if self.differing:
            counts = Counter(cause for row in self.differing for cause in row.causes)
            told = ", ".join(f"{cause} ({count})" for cause, count in counts.items())
            return f"{head}; of the others differs: {told}"
        return head if self.comes_out else f"{head}, though the weights are others"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"summary": self.summary, "comes_out": self.comes_out, **asdict(self)}

    def shown(self) -> dict[str, Any]:
        """Return what a terminal has room for."""
        document = self.to_dict()
        document["differing"] = [
            {"row_id": row.row_id, "difference": row.difference, "cause": _told(row.causes)}
            for row in self.differing[:_SHOWN]
        ]
        return document


def reproduce(
    url: str | os.PathLike[str],
    *,
    sample: int = 64,
    partition: str | None = None,
    allow_import: Sequence[str] = (),
    storage_options: Mapping[str, Any] | None = None,
    source_options: Mapping[str, Any] | None = None,
) -> Reproduced:
    """Predict a sample of published rows again, and say whether they come out.

    Runs on this machine's CPU, without Ray and without the job file. Each row that does not come
    out is named with what differs: weights, input, library, or the published value. At most
    `sample` shards are read.

    Args:
        url: The sink's root, or a partition's folder.
        sample: How many rows; they are the same ones each time.
        partition: Which partition; None: the latest.
        allow_import: Prefixes of the modules that the version's job may name.
        storage_options: fsspec options of the output.
        source_options: fsspec options of input and model; None: those of the output.

    Raises:
        JobError: Nothing is published there, or an older version which does not say how it was
            predicted; or its model is gone.
        InfraError: A part of it is gone, or a store failed.
    """
    if sample < 1:
        raise JobError(f"sample {sample}: must be at least 1")
    output = open_output(url, storage_options=storage_options, source_options=source_options)
    return _reproduce(output[partition] if partition else output.latest, sample, allow_import)


def _reproduce(partition: Partition, num_rows: int, allow: Sequence[str]) -> Reproduced:
    store, manifest = partition.store, partition.manifest
    plan = read_plan(store, partition.layout, manifest.plan or manifest.fingerprint)
    job = published_job(partition, plan)
    spec = published_model(job, manifest, plan, allow)
    task, way = make_task(spec.task), Way.of(spec, manifest)
    columns = [field.name for field in task.fields()]
    sample = sample_of(partition, columns, num_rows)
    asked = list(zip(*(sample.rows.column(name).to_pylist() for name in (ROW_ID, URI)),
                     strict=True)) if sample.parts else []  # fmt: skip
    inputs = read_inputs(job, plan, asked, f"{store.url('')}: {partition.name}")
    changed = _changed(job, spec, manifest)
    said = dict.fromkeys((row_id for row_id, _ in asked), "it is not in the input any more")
    if inputs.tables:
        found = predict(partition, job, plan, way.spec, inputs.tables)
        said |= _differences(task, sample, found, columns, way)
    digests: dict[str, bool] = {}
    differing = []
    for (row_id, uri), part in zip(asked, sample.parts, strict=True):
        if said[row_id]:
            own = {INPUT: inputs.changed[row_id]} if row_id in inputs.changed else {}
            causes = {**_damage(partition, part, digests), **changed, **own}
            causes = causes or {PUBLISHED: _NOTHING_ELSE}
            differing.append(DifferingRow(row_id, uri, said[row_id], causes))
    return Reproduced(
        partition.name,
        manifest.number,
        len(asked),
        tuple(differing),
        changed,
        len(inputs.changed),
        way.said,
    )


def _changed(job: Job, spec: ModelSpec, manifest: Manifest) -> dict[str, str]:
    """Say what of the model and of what computes is not as the manifest has it."""
    then, now = manifest.model, spec.to_dict()
    found = {}
    if then["weights_sha256"] != now["weights_sha256"]:
        old, new = (str(each["weights_sha256"])[:_DIGEST_CHARS] for each in (then, now))
        found[WEIGHTS] = f"SHA-256 {new}, published {old}"
    facts = {**then, "weights_sha256": now["weights_sha256"]}
    facts = {name: value for name, value in facts.items() if name in now}
    others = list(changed_versions(manifest.versions, environment_versions()))
    before = manifest.fingerprint_parts
    parts = {"semantics": job_semantics(job, spec), "extensions": job_extensions(job, spec)}
    if facts != now or any(before.get(name, {}) != value for name, value in parts.items()):
        others.append(why_other(facts, now, (before, parts)))
    return found | ({LIBRARY: ", ".join(others)} if others else {})


def _differences(
    task: Any, sample: Sample, found: pa.Table, columns: Sequence[str], way: Way
) -> dict[str, str]:
    """Return row id -> how its prediction differs from the published one; '' if it does not."""
    ids = found.column(ROW_ID).to_pylist()
    errors = zip(found.column(ERROR).to_pylist(), found.column(MESSAGE).to_pylist(), strict=True)
    failed = [f"fails now: {error}: {message}" if error else "" for error, message in errors]
    good = pa.array([not each for each in failed])
    known = {row_id: row for row, row_id in enumerate(sample.rows.column(ROW_ID).to_pylist())}
    at = pa.array([known[row_id] for row_id in ids], pa.int64())
    pairs = (sample.rows.take(at), found)
    sides = (rows.filter(good).select(columns) for rows in pairs)
    said = iter(task.differences(*sides, way.limits))
    return {row_id: each or next(said) for row_id, each in zip(ids, failed, strict=True)}


def _damage(partition: Partition, part: Part, known: dict[str, bool]) -> dict[str, str]:
    """Say that a part has other bytes than the manifest says, if it has."""
    if part.path not in known:
        [old] = [
            each
            for each in CarriedVersion(partition.layout, partition.manifest).parts()
            if each.part == part
        ]
        data = old.find(partition.store, partition.store.read_bytes)
        known[part.path] = hashlib.sha256(data).hexdigest() != part.sha256
    if not known[part.path]:
        return {}
    return {
        PUBLISHED: f"{partition.store.url(part.path)} has another SHA-256 than its manifest says"
    }


def _told(causes: Mapping[str, str]) -> str:
    return "; ".join(f"{cause}: {what}" for cause, what in causes.items())
