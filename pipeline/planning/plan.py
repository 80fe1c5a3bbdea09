"""The plan of a run: units, slices and the fingerprint. One listing has one plan."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.core.errors import JobError
from pipeline.core.registry import ENGINES, INPUTS, SOURCES, TASKS
from pipeline.core.schema import (
    CLASSIFY_FIELDS,
    OUTPUT_SCHEMA_VERSION,
    RESERVED_COLUMNS,
    ROW_ID,
    URI,
    prediction_schema,
    staged_schema,
)
from pipeline.core.semantics import semantics_of
from pipeline.core.slices import SliceKey
from pipeline.core.user_code import code_digest, noun_of
from pipeline.job.job import Job
from pipeline.job.source import Source
from pipeline.models.spec import ModelSpec
from pipeline.planning.predictor_key import digest_of, predictor_key, row_settings
from pipeline.planning.slicing import units_of
from pipeline.sources.columns.pass_through import taken_name
from pipeline.sources.formats.table_view import VERSION, TableFile, without_version
from pipeline.sources.listing.inputs import Inputs
from pipeline.sources.source_format import NONE_LEFT_OUT, LeftOut, RowIds, format_of
from pipeline.sources.units import Extent, Unit, with_ctimes
from pipeline.storage.skipped import Skipped
from pipeline.storage.store import Store

_USUAL_UNITS = 1_000
_OF_DECODING = {"max_image_bytes", "max_image_px"}
"""Limits that apply to a row after it was looked up by its content."""


@dataclass(frozen=True)
class Plan:
    """The work of a run, and of all runs that list the same; stored under `_control`."""

    fingerprint: str
    source_root: str
    units: tuple[Unit, ...]
    pass_through: pa.Schema
    task_fields: pa.Schema
    """The columns that the task adds."""
    row_ids: RowIds
    """The origin of ids; those of a column or a key are in the shards, not in the plan."""
    fields: pa.Schema
    """The columns of a row's input, with the types in the shards."""
    model: dict[str, Any]
    num_shards: int
    input_bytes: int
    batch_size: int = field(default=0, compare=False)
    """The most rows per model call. This field and the next belong to a run and are not stored."""
    batch_tokens: int = field(default=0, compare=False)
    """The most tokens per model call; 0 for inputs without tokens."""
    fingerprint_parts: dict[str, Any] = field(default_factory=dict)
    """The parts of the fingerprint, from which a later plan tells changes: digests `inputs`,
    `model` and `settings`; `semantics`, area -> version; and, if there are any, `extensions`,
    extension of an installed distribution -> digest of its code."""
    predictor_key: str = field(default="", compare=False)
    """Digest of everything that decides the prediction of a row; '' if unknown. This field and the
    following ones belong to the current job and are not stored with the plan."""
    row_settings: str = field(default="", compare=False)
    """Digest of everything that decides the other columns of a row."""
    has_hashes: bool = field(default=False, compare=False)
    """Predictions have a hash of the model's input."""
    stored_as: str = field(default="", compare=False)
    """Digest of the stored plan, which is its name; '' before it is stored."""
    twin: str = field(default="", compare=False)
    """Fingerprint of the job that differs only in whether it pins eager fp32; '' if there is none.
    Its publications in eager fp32 equal those of this plan."""
    ctimes_sha256: str = field(default="", compare=False)
    """Digest of the ctimes of local shards when listed; '' if the store has none. Not part of the
    fingerprint, because copies of a file differ in it."""
    skipped: Skipped = field(default_factory=Skipped)
    """Files below the source that were not input when it was listed."""
    left_out: LeftOut = field(default=NONE_LEFT_OUT, compare=False)
    """What `source.where` left out when it was listed."""
    where: str = field(default="", compare=False)
    """`source.where` in its normal form; '' if all rows are input."""
    table: pa.Schema | None = field(default=None, compare=False)
    """The columns that the job reads of a lake table, as `TableFile.table`; None: no table."""

    @property
    def has_gaps(self) -> bool:
        """Tell whether some rows of a shard may be no input: deleted ones, or by `where`."""
        return self.table is not None or bool(self.where)

    @cached_property
    def table_digest(self) -> str:
        """Return a digest of `table`; '' without one."""
        return "" if self.table is None else digest_of(schema_to_text(without_version(self.table)))

    @property
    def table_version(self) -> int | None:
        """Return the version of the table that was read; None without one."""
        return None if self.table is None else int(self.table.metadata[VERSION])

    @cached_property
    def num_rows(self) -> int | None:
        """Return the rows of all units; None if only reading counts them."""
        counts = [unit.num_rows for unit in self.units]
        return None if None in counts else sum(count or 0 for count in counts)

    @cached_property
    def unopened(self) -> tuple[Extent, ...]:
        """Return the shards that could not be opened when listed."""
        extents = (extent for unit in self.units for extent in unit.extents)
        return tuple(extent for extent in extents if extent.is_whole_shard)

    @property
    def task(self) -> str:
        """Return the name of the task, from the job or the model directory."""
        name: str = self.model["task"]["kind"]
        return name

    @property
    def num_slices(self) -> int | None:
        """Return the number of slices of all units; None if only reading counts their rows."""
        return None if self.counts_by_reading else sum(len(u.bounds) - 1 for u in self.units)

    @property
    def counts_by_reading(self) -> bool:
        """Tell whether only reading counts the rows."""
        return any(unit.cut is not None for unit in self.units)

    @property
    def work(self) -> str:
        """Return the name under which the plan is stored and its slices are staged."""
        return self.stored_as or self.fingerprint

    @property
    def source_columns(self) -> tuple[str, ...]:
        """Return the columns of a prediction that come from the source."""
        return ROW_ID, URI, *self.pass_through.names

    def prediction_schema(self) -> pa.Schema:
        """Return the schema of the published predictions."""
        fields = list(self.pass_through), list(self.task_fields)
        return prediction_schema(*fields, has_hashes=self.has_hashes)

    def staged_schema(self) -> pa.Schema:
        """Return the schema of staged rows, without the hash."""
        return staged_schema(list(self.pass_through), list(self.task_fields))

    def slices(self) -> Iterator[SliceKey]:
        """Yield the slices in order.

        Raises:
            ValueError: Only reading counts the rows of a unit.
        """
        for unit in self.units:
            yield from unit.slices()

    def usual_slice_rows(self) -> list[int]:
        """Return the rows of the slices of the first units; the most per slice if not counted."""
        slice_rows: list[int] = []
        for unit in self.units[:_USUAL_UNITS]:
            if unit.cut is not None:
                slice_rows.append(unit.cut.slice_rows)
            else:
                slice_rows += [key.num_rows for key in unit.slices()]
        return slice_rows


def make_plan(job: Job, inputs: Inputs, model: ModelSpec, *, batch_size: int) -> Plan:
    """Cut the inputs into units and slices and compute the fingerprint.

    Args:
        job: The job; only fields that decide predictions enter the fingerprint.
        inputs: The result of `list_inputs`.
        batch_size: Rows per model call; most slices are a multiple of it.
    """
    task_fields = _task_fields(job.source, inputs, model)
    _require_free((*inputs.pass_through.names, *task_fields.names), job.sink.partition)
    parts, form = fingerprint_parts(job, inputs, model), format_of(job.source)
    limits = job.source.model_dump(include=_OF_DECODING)
    key = predictor_key(
        model, inputs.fields, parts["semantics"], parts.get("extensions", {}), limits
    )
    is_whole = job.run.limit_rows is None
    return Plan(
        fingerprint=digest_of(parts),
        source_root=inputs.root,
        units=with_ctimes(
            units_of(job, inputs.extents, batch_size, model.task.kind),
            {s.path: s.ctime_ns for s in inputs.shards},
        ),
        pass_through=inputs.pass_through,
        task_fields=task_fields,
        row_ids=form.row_ids(job.source),
        fields=inputs.fields,
        model=model.to_dict(),
        batch_size=batch_size,
        num_shards=len(inputs.shards),
        input_bytes=inputs.num_bytes,
        fingerprint_parts=parts,
        predictor_key=key,
        has_hashes=job.run.reuse == "content" and is_whole and bool(key),
        row_settings=row_settings(
            job.source.settings("rows"),
            Store(inputs.root).url(""),
            inputs.pass_through,
            task_fields,
        ),
        twin=_twin(parts, model),
        ctimes_sha256=_ctimes_sha256(inputs),
        skipped=inputs.skipped,
        left_out=inputs.left_out,
        where=str(job.source.condition or ""),
        table=inputs.table,
    )


def _task_fields(source: Source, inputs: Inputs, model: ModelSpec) -> pa.Schema:
    fields = model.output_fields()
    names = [field.name for field in fields]
    taken = RESERVED_COLUMNS - {field.name for field in CLASSIFY_FIELDS}
    for name in names:
        if name in inputs.pass_through.names:
            raise JobError(taken_name(source, name))
        if name in taken:
            raise JobError(f"model: column {name!r} of the outputs is taken; choose another name")
    for name in names:
        if names.count(name) > 1:
            raise JobError(
                f"model: {names.count(name)} columns of the outputs are called {name!r}; give each "
                "a name of its own (targets, outputs, or the schema of postprocess)"
            )
    return pa.schema(fields)


def _require_free(names: Sequence[str], partition: str | None) -> None:
    """Refuse a column with the name of the partition's key: engines take the folder's value."""
    key = (partition or "").partition("=")[0].lower()
    for name in names:
        if name.lower() == key:
            raise JobError(
                f"column {name!r} has the name of sink.partition = {partition}, and most engines "
                "read that from the folder instead; rename the partition, or omit the column"
            )


def fingerprint_parts(job: Job, inputs: Inputs, model: ModelSpec) -> dict[str, Any]:
    """Return digests and versions that decide the predictions, as `Plan.fingerprint_parts`."""
    shards = [[shard.path, shard.size_bytes, shard.version] for shard in inputs.shards]
    if inputs.table is not None:
        shards += _in_table(inputs)
    pass_through = schema_to_text(inputs.pass_through)
    settings = {
        "output_schema_version": OUTPUT_SCHEMA_VERSION,
        "source": job.source.settings("fingerprint"),
        "limit_rows": job.run.limit_rows,
    }
    return {
        "inputs": digest_of([Store(inputs.root).url(""), pass_through, shards]),
        "model": model_digest(model),
        "settings": digest_of(settings),
        "semantics": job_semantics(job, model),
        **({"extensions": extensions} if (extensions := job_extensions(job, model)) else {}),
    }


def _in_table(inputs: Inputs) -> list[list[Any]]:
    """Return what a table says of its files: their live rows, their values, and its columns."""
    files = [file for file in inputs.shards if isinstance(file, TableFile)]
    facts = [[file.given, file.rows and file.rows.bounds] for file in files]
    return [*facts, [schema_to_text(without_version(inputs.table))]]


def model_digest(model: ModelSpec) -> str:
    """Return a digest of everything of a model that decides predictions.

    A job that leaves the runtime open differs from one that pins eager fp32: its staged slices may
    be of any runtime at fp32, as chosen.
    """
    pinned = {"pinned": True} if model.is_reference and model.is_pinned else {}
    return digest_of({**model.to_dict(), **pinned})


def _twin(parts: Mapping[str, Any], model: ModelSpec) -> str:
    """Return the fingerprint of the job that pins eager fp32 if this one leaves it open, and the
    reverse; '' if it does neither."""
    if not model.is_reference:
        return ""
    other = replace(model, is_pinned=not model.is_pinned)
    return digest_of({**parts, "model": model_digest(other)})


def job_semantics(job: Job, model: ModelSpec) -> dict[str, int]:
    """Return area -> version of the code that decides the predictions of a job."""
    areas = {job.source.format: format_of(job.source).semantics, **model.input.semantics}
    return semantics_of(areas, has_uris=job.source.has_uris)


def job_extensions(job: Job, model: ModelSpec) -> dict[str, str]:
    """Return extension of an installed distribution that the job uses -> digest of its code."""
    named = [
        (SOURCES, job.source.format),
        *((INPUTS, name) for name in (model.input.name, *job.source.input_parts.values())),
        (TASKS, model.task.kind),
        (ENGINES, model.engine),
    ]
    digests = {f"{noun_of(group)} {name}": code_digest(group, name) for group, name in named}
    return {which: digest for which, digest in digests.items() if digest}


def _ctimes_sha256(inputs: Inputs) -> str:
    ctimes_ns = np.fromiter((shard.ctime_ns for shard in inputs.shards), "<i8", len(inputs.shards))
    return hashlib.sha256(ctimes_ns.tobytes()).hexdigest() if ctimes_ns.any() else ""


def schema_to_text(schema: pa.Schema) -> str:
    """Return a schema as text; equal schemas give equal text."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()
