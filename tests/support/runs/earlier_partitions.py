"""A job over real inputs from its plan to the published partition, and its retries, without Ray.

Inputs are listed, planned, read, staged, merged and published by the functions of a run; only the
predictions are made up. A set of row ids says which rows the decoder cannot take yet.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import models
import pyarrow as pa

from pipeline.commit.layout import Layout
from pipeline.commit.lease import hold_lease
from pipeline.commit.manifest import Manifest, current_manifest
from pipeline.commit.publish import repair
from pipeline.commit.staging import list_staged
from pipeline.core.failures import Failure, Reason, failure_columns, failures_of
from pipeline.core.schema import ROW_ID
from pipeline.core.slices import SliceKey, pack, unpack
from pipeline.job.job import Job
from pipeline.job.reading.loader import parse_job
from pipeline.models.spec import ModelSpec
from pipeline.planning.plan import Plan
from pipeline.planning.tiling import missing_units
from pipeline.report.document import RunStatus
from pipeline.report.recording.recorder import RunRecorder
from pipeline.reuse.failures import check_reasons
from pipeline.reuse.filling import Filler
from pipeline.runs.builders import make_writer
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.ending.finish import fail_fast_on_certain_refusal, finish
from pipeline.runs.preparing.prepare import prepare
from pipeline.runs.resume import is_published, note_unchanged, stage_known_slices, take_over
from pipeline.runs.work import Work, divide
from pipeline.sources.reader import read_slices
from pipeline.sources.rows import Reader
from pipeline.sources.units import Unit
from pipeline.storage.store import Store, StoredFile
from support.runs.published import DAY, LABELS, run_here
from support.runs.published_rows import read_part

LAYOUT = Layout(DAY)


@dataclass
class EarlierPartition:
    """A partition that runs and retries of one job publish, and what its decoder cannot take."""

    inputs: str
    out: Store
    source: dict[str, Any]
    broken: set[str] = field(default_factory=set)
    sections: dict[str, Any] = field(default_factory=dict)
    weights: str = ""
    """File of the weights; left out, the tensors come from code, and nothing is carried over."""
    reuse: bool = True
    drift: int = 0
    """Another number is another model, of which nothing tells: for what may not be taken over."""
    partition: str = DAY
    said: list[str] = field(default_factory=list)
    """What the last run said of carried rows."""
    computed: list[str] = field(default_factory=list)
    """Row ids, in the order in which they were predicted or failed."""
    record: RunRecorder | None = None
    status: RunStatus = "failed"

    @property
    def job(self) -> Job:
        sink = {"uri": self.out.uri, "partition": self.partition, "target_part_mib": 0.004}
        weights = {"weights": self.weights} if self.weights else {}
        document = {
            "source": {"uri": self.inputs, **self.source},
            "model": {
                "factory": "models:colours",
                "labels": models.LABELS,
                **weights,
                **self.sections.get("model", {}),
            },
            "transform": models.TRANSFORM,
            "gates": {"max_error_pct": 100.0},
            "report": {"samples": 0},
            **{name: each for name, each in self.sections.items() if name != "model"},
            "run": {"slice_rows": 4, **self.sections.get("run", {})},
            "sink": {**sink, **self.sections.get("sink", {})},
        }
        document = {name: each for name, each in document.items() if each is not None}
        job = parse_job(document, date=dt.date(2026, 11, 24), origin="test")
        options = dict(self.out.storage_options)
        return job.model_copy(
            update={"sink": job.sink.model_copy(update={"storage_options": options})}
        )

    @property
    def layout(self) -> Layout:
        return Layout(self.partition)

    def new_run(self) -> RunContext:
        self.record = RunRecorder(f"run-{uuid.uuid4().hex[:8]}", self.layout.name)
        self.computed.clear()
        self.said.clear()
        options = RunOptions(allow_import=("models",), reuse=self.reuse)
        return RunContext(self.job, options, self.out, self.layout, self.record)

    def run(self) -> Manifest:
        """Do what `pipeline run` does."""
        return self._carry_out(self.new_run())

    def retry(self, *reasons: str) -> RunStatus:
        """Do what `pipeline retry` does."""
        base = current_manifest(self.out, self.layout)
        options = replace(self.new_run().options, retried=check_reasons(reasons))
        run = replace(self.new_run(), options=options)
        found = self._carry_out(run)
        is_same = base is not None and found.token == base.token
        self.status = "nothing_to_do" if is_same else "published"
        return self.status

    def _carry_out(self, run: RunContext) -> Manifest:
        plan, model = prepare(run)
        columns, is_retry = run.job.sink.partition_columns, run.options.retried is not None
        with hold_lease(self.out, run.layout, run.record.run_id, 60.0) as lease:
            base = repair(self.out, run.layout, run.job.sink.keep_versions, table=run.table)
            if base is not None and not is_retry and is_published(base, plan, columns):
                return base
            work = divide(run, plan, model, base, self.said.append)
            if work.is_vain:
                note_unchanged(run)
                assert base is not None
                return base
            staged = self.stage(run, work)
            return finish(run, work, work.plan, staged, lease, run_here)

    def report(self) -> dict[str, Any]:
        """The report of the last retry."""
        assert self.record is not None
        return self.record.report(self.status, 0).model_dump(mode="json")

    def summary(self) -> str:
        """What the last run prints."""
        assert self.record is not None
        return str(self.record.report("published", 0))

    def stage(self, run: RunContext, work: Work) -> Mapping[SliceKey, StoredFile]:
        """Stage the slices that are missing, as `dataflow` does."""
        plan, model, known = work.plan, work.model, work.known
        staged = take_over(run, plan, work.reuse.sources)
        staged = stage_known_slices(run, work, model, staged, run_here)
        writer, source, salt = make_writer(run, plan, model), run.job.source, salt_of(model)
        reader = Reader(
            Store(plan.source_root, source.storage_options), source, plan.pass_through, plan.fields
        )

        def read(unit: Unit, starts: frozenset[int]) -> Iterator[pa.Table]:
            yield from (pack(*each) for each in read_slices(reader, unit, starts))

        for unit, starts in missing_units(plan, staged).items():
            if known is None:
                blocks = read(unit, frozenset(starts))
            else:
                filler = Filler(known.of_unit(unit.index))
                blocks = filler.slices(reader, unit, frozenset(starts), read)
            for key, counters, rows, aside in (each for block in blocks for each in unpack(block)):
                self.computed += rows.column(ROW_ID).to_pylist()
                staged_rows = predict_rows(rows, plan, self.broken, salt + self.drift)
                run.record.computed(writer.write(key, counters, staged_rows, aside))
                fail_fast_on_certain_refusal(run, plan)
        return list_staged(self.out, run.layout.staging(plan.work))

    def current(self) -> Manifest:
        manifest = current_manifest(self.out, self.layout)
        assert manifest is not None
        return manifest

    def content(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Predictions and quarantine as they are published, in order."""
        return content_of(self.out, self.current())

    def failed(self) -> dict[str, str]:
        return {row["row_id"]: row["reason"] for row in self.content()[1]}


def content_of(
    store: Store, manifest: Manifest
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    hive = manifest.partition_columns
    good = [
        row for part in manifest.parts for row in read_part(store, part, None, hive).to_pylist()
    ]
    bad = [row for p in manifest.quarantine_parts for row in read_part(store, p).to_pylist()]
    return good, [{k: v for k, v in row.items() if k != "run_id"} for row in bad]


def salt_of(model: ModelSpec) -> int:
    """A number that is another one if the weights or the transform are."""
    digest = hashlib.sha256(f"{model.weights_sha256} {model.input.settings()}".encode())
    return int(digest.hexdigest()[:8], 16)


def predict_rows(rows: pa.Table, plan: Plan, broken: Collection[str], salt: int = 0) -> pa.Table:
    """Make up predictions that depend on the input and the model alone.

    Args:
        broken: Ids, or contents as text, of rows that cannot be decoded.
    """
    ids = rows.column(ROW_ID).to_pylist()
    inputs = [content_of_row(row) for row in rows.select(plan.fields.names).to_pylist()]
    undecodable = Failure(Reason.DECODE_ERROR, "decode", "no such codec")
    failures = [
        failure or (undecodable if {value, content.decode("latin-1")} & {*broken} else None)
        for value, content, failure in zip(ids, inputs, failures_of(rows), strict=True)
    ]
    numbers = [
        None if failure else (sum(content) + salt) % len(LABELS)
        for content, failure in zip(inputs, failures, strict=True)
    ]
    labels = [None if number is None else LABELS[number] for number in numbers]
    scores = [None if number is None else 0.5 for number in numbers]
    top = [
        None if label is None else [{"label": label, "label_id": number, "score": 0.5}]
        for label, number in zip(labels, numbers, strict=True)
    ]
    columns = {name: rows.column(name) for name in plan.source_columns}
    columns |= {"label": labels, "score": scores, "top_k": top, **failure_columns(failures)}
    others = pa.array(numbers, pa.int32())
    schema = plan.staged_schema()
    return pa.table(
        {
            each.name: columns[each.name] if each.name in columns else others.cast(each.type)
            for each in schema
        },
        schema=schema,
    )


def content_of_row(row: Mapping[str, Any]) -> bytes:
    """All that a row says, as bytes."""
    return b" ".join(v if isinstance(v, bytes) else str(v).encode() for v in row.values())


def write_same_time(path: Path, data: bytes) -> None:
    """Write as many other bytes and keep the time, so that a listing shows no change."""
    then = path.stat()
    assert then.st_size == len(data)
    path.write_bytes(data)
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))


def damage(path: Path) -> bytes:
    """Make a file unreadable as by a bad block; return what it was."""
    data = path.read_bytes()
    write_same_time(path, bytes(len(data)))
    return data
