"""The plan of a run: units, slices and the fingerprint. Deterministic, made once, then adopted.

A unit is the grain of reading (one read task), a slice the grain of resuming (one staged part).
Both are cut by rows, so that many small shards share a unit and a huge one becomes several.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from typing import Any, Literal

import pyarrow as pa

from pipeline.errors import JobError
from pipeline.extents import Cut, Extent
from pipeline.inputs import Inputs
from pipeline.job import Job
from pipeline.model import ModelSpec
from pipeline.schema import (
    CLASSIFY_FIELDS,
    OUTPUT_SCHEMA_VERSION,
    RESERVED_COLUMNS,
    SliceKey,
    prediction_schema,
)
from pipeline.storage import Store
from pipeline.task import make_task

RowIds = Literal["path", "path#row", "column", "key"]
MAX_SLICE_BYTES = 256 * 1024 * 1024
SLICE_ROWS_NEAR = 256
_MAX_UNIT_SLICES = 8
_MAX_UNITS_PER_ROW_GROUP = 4
_USUAL_UNITS = 1_000
# The modules whose code decides what a prediction is; a change in one makes a new fingerprint.
_SEMANTIC_MODULES = (
    *("decode", "transform", "preprocess", "predictor", "model", "schema", "source", "task"),
    *("jpeg_groups", "jpeg_skeleton"),
    *("columns", "rows", "image_stream", "parquet_stream", "archive", "tar", "tar_stream"),
    *("runtimes", "mnn_model", "quantise", "lane", "results", "dedupe"),
    *("uri_policy", "web", "fetch"),
)


@dataclass(frozen=True)
class Unit:
    """What one read task reads: extents in order, cut into slices at `bounds`."""

    index: int
    extents: tuple[Extent, ...]
    bounds: tuple[int, ...]
    """0 = bounds[0] < ... < bounds[-1] = rows of the unit; slice i is [bounds[i], bounds[i+1])."""
    cut: Cut | None = None
    """Set where nobody knows the rows before they are read; there are no bounds then."""

    @property
    def num_rows(self) -> int | None:
        """Return the rows of the unit; None where they are known only when it has been read."""
        return self.bounds[-1] if self.cut is None else None

    def slices(self) -> list[SliceKey]:
        """Return the slices in order.

        Raises:
            ValueError: They are known only when the unit has been read.
        """
        if self.cut is not None:
            raise ValueError(f"unit {self.index}: its slices are known when it has been read")
        last = len(self.bounds) - 2
        return [
            SliceKey(self.index, self.bounds[i], self.bounds[i + 1], is_last=i == last)
            for i in range(last + 1)
        ]


@dataclass(frozen=True)
class Plan:
    """All that a run of this fingerprint will do; stored once under `_control`."""

    fingerprint: str
    source_root: str
    units: tuple[Unit, ...]
    pass_through: pa.Schema
    task_fields: pa.Schema
    """The columns that the task adds."""
    row_ids: RowIds
    """How ids come to be; those of a `column` or a tar's `key` cannot be told from the plan."""
    num_features: int
    """Length of the feature vector of a row; 0 for images."""
    model: dict[str, Any]
    batch_size: int
    num_shards: int
    input_bytes: int
    ignored: tuple[str, ...]
    created_at: str
    settings: str = ""
    """Digest of what the job and its model ask for, whatever the inputs and the code are."""

    @cached_property
    def num_rows(self) -> int | None:
        """Return the rows of all units; None where they are known only when all has been read."""
        counts = [unit.num_rows for unit in self.units]
        return None if None in counts else sum(count or 0 for count in counts)

    def prediction_schema(self) -> pa.Schema:
        """Return the schema of the published predictions."""
        return prediction_schema(list(self.pass_through), list(self.task_fields))

    def slices(self) -> Iterator[SliceKey]:
        """Yield the slices in order; only where the rows are known."""
        for unit in self.units:
            yield from unit.slices()

    def usual_slice_rows(self) -> list[int]:
        """Return the rows of the slices of the first units; where nobody knows, the most."""
        found: list[int] = []
        for unit in self.units[:_USUAL_UNITS]:
            if unit.cut is not None:
                found.append(unit.cut.slice_rows)
            else:
                found += [key.num_rows for key in unit.slices()]
        return found


def make_plan(job: Job, inputs: Inputs, model: ModelSpec, *, batch_size: int) -> Plan:
    """Cut the inputs into units and slices and compute the fingerprint.

    Args:
        job: The job; only what decides the predictions enters the fingerprint.
        inputs: What `list_inputs` found.
        model: The resolved model.
        batch_size: Rows of one model call; slices are a whole number of batches.
    """
    return Plan(
        fingerprint=_fingerprint(job, inputs, model),
        source_root=inputs.root,
        units=tuple(_units_of(job, inputs, choose_slice_rows(job, batch_size))),
        pass_through=inputs.pass_through,
        task_fields=_task_fields(inputs, model),
        row_ids=_row_ids(job),
        num_features=inputs.num_features,
        model=model.to_dict(),
        batch_size=batch_size,
        num_shards=len(inputs.shards),
        input_bytes=inputs.num_bytes,
        ignored=inputs.ignored,
        created_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        settings=settings_digest(job, model),
    )


def settings_digest(job: Job, model: ModelSpec) -> str:
    """Digest what a job and its model ask for; inputs and code are left out."""
    settings = {
        "output_schema_version": OUTPUT_SCHEMA_VERSION,
        "model": model.to_dict(),
        "source": job.source.model_dump(mode="json", exclude={"storage_options"}),
        "limit_rows": job.run.limit_rows,
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _units_of(job: Job, inputs: Inputs, slice_rows: int) -> Iterator[Unit]:
    if job.source.format == "webdataset":
        return _tar_units(inputs.extents, slice_rows, job.run.limit_rows)
    return make_units(_limit(inputs.extents, job.run.limit_rows), slice_rows)


def make_units(extents: Sequence[Extent], slice_rows: int) -> Iterator[Unit]:
    """Cut extents whose rows are known into units of some slices."""
    total = sum(extent.num_rows for extent in extents)
    per_unit = min(_MAX_UNIT_SLICES, max(1, total // (slice_rows * 64)))
    return _cut_units(extents, slice_rows, slice_rows * per_unit)


def _tar_units(
    extents: Sequence[Extent], slice_rows: int, limit_rows: int | None
) -> Iterator[Unit]:
    """Make a unit of each tar; with a limit one of all, for only it knows what rows are first."""
    groups = [(extent,) for extent in extents] if limit_rows is None else [tuple(extents)]
    cut = Cut(slice_rows, MAX_SLICE_BYTES, limit_rows)
    for index, group in enumerate(groups if extents else []):
        yield Unit(index, group, bounds=(), cut=cut)


def _row_ids(job: Job) -> RowIds:
    if job.source.format == "images":
        return "path"
    if job.source.format == "webdataset":
        return "key"
    return "column" if job.source.id_column else "path#row"


def _task_fields(inputs: Inputs, model: ModelSpec) -> pa.Schema:
    fields = make_task(model.task).fields()
    own = {field.name for field in CLASSIFY_FIELDS}
    taken = (RESERVED_COLUMNS - own) | set(inputs.pass_through.names)
    clash = [field.name for field in fields if field.name in taken]
    if clash:
        raise JobError(f"model: column {clash[0]!r} of the outputs is taken; choose another name")
    return pa.schema(fields)


def choose_slice_rows(job: Job, batch_size: int) -> int:
    """Return the rows of a slice: what the job says, else whole batches near 256 rows."""
    return job.run.slice_rows or batch_size * max(1, round(SLICE_ROWS_NEAR / batch_size))


def _limit(extents: Sequence[Extent], limit_rows: int | None) -> list[Extent]:
    if limit_rows is None:
        return list(extents)
    kept: list[Extent] = []
    left = limit_rows
    for extent in extents:
        if left <= 0:
            break
        kept.append(replace(extent, num_rows=min(extent.num_rows, left)))
        left -= kept[-1].num_rows
    return kept


def _cut_units(extents: Sequence[Extent], slice_rows: int, unit_rows: int) -> Iterator[Unit]:
    pending: list[Extent] = []
    rows = index = 0
    for extent in _split_large(extents, slice_rows, unit_rows):
        pending.append(extent)
        rows += extent.num_rows
        if rows >= unit_rows:
            yield _make_unit(index, pending, slice_rows)
            pending, rows, index = [], 0, index + 1
    if pending:
        yield _make_unit(index, pending, slice_rows)


def _split_large(extents: Sequence[Extent], slice_rows: int, unit_rows: int) -> Iterator[Extent]:
    """Cut extents far above a unit. A few pieces only: a row group is read from its beginning."""
    for extent in extents:
        pieces = min(_MAX_UNITS_PER_ROW_GROUP, extent.num_rows // unit_rows)
        if pieces < 2 or extent.reason is not None:
            yield extent
            continue
        piece_rows = -(-extent.num_rows // (pieces * slice_rows)) * slice_rows
        for offset in range(0, extent.num_rows, piece_rows):
            yield extent.piece(offset, min(piece_rows, extent.num_rows - offset))


def _make_unit(index: int, extents: Sequence[Extent], slice_rows: int) -> Unit:
    num_rows = sum(extent.num_rows for extent in extents)
    heaviest = max(extent.row_bytes for extent in extents)
    step = slice_rows
    while step > 1 and step * heaviest > MAX_SLICE_BYTES:
        step = -(-step // 2)
    bounds = (*range(0, num_rows, step), num_rows)
    return Unit(index, tuple(extents), bounds)


def _fingerprint(job: Job, inputs: Inputs, model: ModelSpec) -> str:
    digest = hashlib.sha256()
    settings = {
        "output_schema_version": OUTPUT_SCHEMA_VERSION,
        "code": code_digest(),
        "model": model.to_dict(),
        "source": job.source.model_dump(mode="json", exclude={"storage_options", "uri"}),
        "root": Store(inputs.root).url(""),
        "limit_rows": job.run.limit_rows,
        "pass_through": schema_to_text(inputs.pass_through),
    }
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for shard in inputs.shards:
        digest.update(json.dumps([shard.path, shard.size_bytes, shard.version]).encode())
    return digest.hexdigest()


def code_digest() -> str:
    """Digest the source text of the modules that decide the predictions."""
    digest = hashlib.sha256()
    for name in _SEMANTIC_MODULES:
        digest.update(resources.files("pipeline").joinpath(f"{name}.py").read_bytes())
    return digest.hexdigest()


def schema_to_text(schema: pa.Schema) -> str:
    """Return a schema as text, the same for the same schema."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()
