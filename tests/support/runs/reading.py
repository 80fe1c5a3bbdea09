"""Plan a job and read its units, without Ray and without a model."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from pathlib import Path
from typing import Any

import models
import pyarrow as pa

from pipeline.core.figures import Counters
from pipeline.core.schema import IMAGE_FIELDS
from pipeline.core.slices import SliceKey
from pipeline.job.job import Job
from pipeline.job.reading.loader import parse_job
from pipeline.models.resolving.resolve import resolve_model
from pipeline.planning.plan import Plan, make_plan
from pipeline.sources.listing.inputs import list_inputs
from pipeline.sources.reader import read_slices
from pipeline.sources.rows import Reader
from pipeline.storage.store import Store
from support.runs.jobs import job_over

Slices = dict[tuple[int, int], pa.Table]


def plan_job(
    uri: Path | str, slice_rows: int, *, sink: dict[str, Any] | None = None, **fields: Any
) -> tuple[Reader, Plan]:
    document = {
        "source": {"uri": str(uri), "format": "parquet", **fields},
        "model": {"factory": "models:colours", "labels": models.LABELS},
        "transform": models.TRANSFORM,
        "sink": sink or {"uri": "out"},
        "run": {"slice_rows": slice_rows},
    }
    job: Job = parse_job(document, date=dt.date(2026, 11, 24), origin="test")
    inputs = list_inputs(job.source, max_extent_rows=slice_rows)
    # Of images, whatever the job reads: only its plan is looked at.
    model = resolve_model(job_over("image", job.model, transform=job.transform), ["models"])
    plan = make_plan(job, inputs, model, batch_size=1)
    store = Store(plan.source_root, job.source.storage_options)
    return Reader(
        store, job.source, plan.pass_through, IMAGE_FIELDS, folders=job.sink.partition_columns
    ), plan


def read(
    reader: Reader, plan: Plan, wanted: Collection[tuple[int, int]] | None = None
) -> tuple[Slices, list[Counters]]:
    """Read the wanted slices (unit, start), or all."""
    slices: Slices = {}
    counted = []
    for unit in plan.units:
        starts = {
            key.start for key in unit.slices() if wanted is None or (key.unit, key.start) in wanted
        }
        for key, counters, table in read_slices(reader, unit, starts):
            assert isinstance(key, SliceKey)
            assert table.num_rows == key.num_rows
            slices[key.unit, key.start] = table
            counted.append(counters)
    return slices, counted


def read_whole(uri: Path | str, slice_rows: int, **fields: Any) -> tuple[pa.Table, Plan]:
    """All rows of a job's source, counted before or by reading; `fields` as of `plan_job`."""
    reader, plan = plan_job(uri, slice_rows, **fields)
    reader = Reader(reader.store, reader.source, plan.pass_through, plan.fields)
    tables = []
    for unit in plan.units:
        starts = set() if unit.cut is not None else {key.start for key in unit.slices()}
        tables += [table for _, _, table in read_slices(reader, unit, starts)]
    return pa.concat_tables(tables), plan


def rows(slices: Slices) -> list[dict[str, Any]]:
    return pa.concat_tables([slices[key] for key in sorted(slices)]).to_pylist()
