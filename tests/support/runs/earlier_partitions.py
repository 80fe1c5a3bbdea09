"""A job over real inputs from its plan to the published partition, and its retries, without Ray.

Inputs are listed, planned, read, staged, merged and published by the functions of a run; only the
predictions are made up. A set of row ids says which rows the decoder cannot take yet.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import multiprocessing
import os
import signal
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import models
import pyarrow as pa
import pytest

from pipeline.commit.layout import Layout
from pipeline.commit.lease import hold_lease
from pipeline.commit.manifest import Manifest, current_manifest
from pipeline.commit.publish import repair
from pipeline.commit.staging import list_staged
from pipeline.core.environment import FAILPOINT
from pipeline.core.failures import Failure, Reason, failure_columns, failures_of
from pipeline.core.schema import ROW_ID
from pipeline.core.slices import SliceKey, pack, unpack
from pipeline.job.job import Job
from pipeline.job.reading.loader import parse_job
from pipeline.models.spec import ModelSpec
from pipeline.planning.plan import Plan
from pipeline.planning.tiling import missing_units
from pipeline.report.document import RunStatus
from pipeline.report.recorder import RunRecorder
from pipeline.reuse.checked_sample import TooFewChecked
from pipeline.reuse.filling import Filler, Read
from pipeline.reuse.finding import day_of
from pipeline.reuse.retried import check_reasons
from pipeline.runs.builders import make_reader, make_writer
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.ending.finish import fail_fast_on_certain_refusal, finish
from pipeline.runs.preparing.prepare import prepare
from pipeline.runs.resume import stage_known_slices, take_over
from pipeline.runs.staleness import is_published, note_unchanged
from pipeline.runs.work import Work, divide
from pipeline.sources.reader import read_slices
from pipeline.sources.rows import Reader
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
    lease_ttl_s: float = 60.0
    today: int = field(default_factory=lambda: day_of(dt.datetime.now(dt.UTC)))
    """What the clock says to runs, in days from 1970."""
    computed: list[str] = field(default_factory=list)
    """Row ids, in the order in which they were predicted or failed."""
    slice_rows: list[int] = field(default_factory=list)
    """Of the slices with such rows."""
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
            **{name: section for name, section in self.sections.items() if name != "model"},
            "run": {"slice_rows": 4, **self.sections.get("run", {})},
            "sink": {**sink, **self.sections.get("sink", {})},
        }
        document = {name: value for name, value in document.items() if value is not None}
        job = parse_job(document, date=dt.date(2026, 11, 24), origin="test")
        options = dict(self.out.storage_options)
        return job.model_copy(
            update={"sink": job.sink.model_copy(update={"storage_options": options})}
        )

    @property
    def layout(self) -> Layout:
        return Layout(self.partition)

    def at(self, out: Store, partition: str = "", **sections: Any) -> EarlierPartition:
        """The same job for another output or another partition, with other sections."""
        sections = {**self.sections, **sections}
        return replace(self, out=out, partition=partition or self.partition, sections=sections)

    def new_run(self) -> RunContext:
        self.record = RunRecorder(f"run-{uuid.uuid4().hex[:8]}", self.layout.name)
        self.computed, self.slice_rows = [], []
        options = RunOptions(allow_import=("models",), reuse=self.reuse)
        return RunContext(self.job, options, self.out, self.layout, self.record)

    def run(self) -> Manifest:
        """Do what `pipeline run` does."""
        with self._clock():
            return self._carry_out(self.new_run())

    def run_killed(self, point: str) -> None:
        """Run in a process that kills itself at a failpoint: its name, a colon, which time."""
        name, _, nth = point.partition(":")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(FAILPOINT, f"{name}:kill:{nth}")
            process = multiprocessing.get_context("spawn").Process(target=self.run)
            process.start()
            process.join()
        assert process.exitcode == -signal.SIGKILL

    def retry(self, *reasons: str) -> RunStatus:
        """Do what `pipeline retry` does."""
        base = current_manifest(self.out, self.layout)
        options = replace(self.new_run().options, retried=check_reasons(reasons))
        with self._clock():
            manifest = self._carry_out(replace(self.new_run(), options=options))
        is_same = base is not None and manifest.token == base.token
        self.status = "nothing_to_do" if is_same else "published"
        return self.status

    @contextmanager
    def _clock(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for module in ("pipeline.reuse.finding", "pipeline.runs.ending.finish"):
                patch.setattr(f"{module}.day_of", lambda _: self.today)
            yield

    def _carry_out(self, run: RunContext) -> Manifest:
        plan, model = prepare(run)
        columns, is_retry = run.job.sink.partition_columns, run.options.retried is not None
        with hold_lease(self.out, run.layout, run.record.run_id, self.lease_ttl_s) as lease:
            base = repair(self.out, run.layout, run.job.sink.keep_versions, table=run.table)
            if base is not None and not is_retry and is_published(base, plan, columns):
                return base
            work = divide(run, plan, model, base, lambda _: None)
            if work.is_vain:
                note_unchanged(run)
                assert base is not None
                return base
            for _ in range(2):
                try:
                    staged = self.stage(run, work)
                    return finish(run, work, work.plan, staged, lease, run_here)
                except TooFewChecked as error:  # as `dataflow` does
                    assert work.known is not None
                    known = replace(work.known, checked_probability=error.probability)
                    work = replace(work, known=known)
            raise AssertionError("too few rows are checked, twice")

    def report(self) -> dict[str, Any]:
        """The report of the last run or retry."""
        assert self.record is not None
        return self.record.report(self.status, 0).model_dump(mode="json")

    def stage(self, run: RunContext, work: Work) -> Mapping[SliceKey, StoredFile]:
        """Stage the slices that are missing, as `dataflow` does."""
        plan, model, known = work.plan, work.model, work.known
        staged = take_over(run, plan, work.reuse.sources)
        staged = stage_known_slices(run, work, model, staged, run_here)
        writer, salt = make_writer(run, plan, model), salt_of(model)
        reader = make_reader(run.job, plan)
        read = read_with(reader)
        for unit, starts in missing_units(plan, staged).items():
            if known is None:
                blocks = read(unit, frozenset(starts))
            else:
                filler = Filler(known.of_unit(unit.index))
                blocks = filler.slices(reader, unit, frozenset(starts), read)
            for key, counters, rows, aside in chain.from_iterable(map(unpack, blocks)):
                self.computed += rows.column(ROW_ID).to_pylist()
                self.slice_rows.append(key.num_rows)
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
        manifest = self.current()
        tables = [read_part(self.out, p, None, manifest.partition_columns) for p in manifest.parts]
        failed = [read_part(self.out, part) for part in manifest.quarantine_parts]
        return (
            [row for table in tables for row in table.to_pylist()],
            [row for table in failed for row in table.drop_columns("run_id").to_pylist()],
        )

    def failed(self) -> dict[str, str]:
        return {row["row_id"]: row["reason"] for row in self.content()[1]}


def read_with(reader: Reader) -> Read:
    """Return what reads slices of a unit, as a filler has them read."""
    return lambda unit, starts: (pack(*item) for item in read_slices(reader, unit, starts))


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
    # All that a row says, as bytes.
    inputs = [
        b" ".join(v if isinstance(v, bytes) else str(v).encode() for v in row.values())
        for row in rows.select(plan.fields.names).to_pylist()
    ]
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
            field.name: columns[field.name] if field.name in columns else others.cast(field.type)
            for field in schema
        },
        schema=schema,
    )


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


def break_off(path: Path, whole: bytes, num_rows: int) -> None:
    """Make a tar of rows of two members each unreadable behind some rows, as by a bad block."""
    begin = num_rows * 2 * 2 * 512
    write_same_time(path, whole[:begin] + b"\xff" * (len(whole) - begin))
