"""Plans of made-up shards, with their job and model."""

from __future__ import annotations

import copy
import datetime as dt
from dataclasses import replace
from typing import Any

import models
import pyarrow as pa

from pipeline.core.failures import Reason
from pipeline.core.schema import IMAGE_FIELDS
from pipeline.job.job import Job
from pipeline.job.reading.loader import parse_job
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec
from pipeline.planning.plan import Plan, make_plan
from pipeline.sources.listing.inputs import Inputs
from pipeline.sources.units import Extent
from pipeline.storage.store import StoredFile
from support.runs.jobs import job_over

DOCUMENT: dict[str, Any] = {
    "source": {"uri": "in", "format": "parquet"},
    "model": {"factory": "models:colours", "labels": ["a", "b"]},
    "transform": models.TRANSFORM,
    "sink": {"uri": "out"},
}


def job(**fields: object) -> Job:
    """The job of DOCUMENT with fields set, as in run__limit_rows=3."""
    document = copy.deepcopy(DOCUMENT)
    for field, value in fields.items():
        section, _, name = field.partition("__")
        document.setdefault(section, {})[name] = value
    return parse_job(document, date=dt.date(2026, 11, 24), origin="test")


def spec_of(planned: Job) -> ModelSpec:
    # Of images, whatever the job reads: its plan is what counts.
    images = job_over("image", planned.model, transform=planned.transform)
    return resolve_model(images, ["models"])


SPEC = spec_of(job())


def inputs_of(extents: list[Extent]) -> Inputs:
    sizes = {e.path: StoredFile(e.path, e.size_bytes, e.version, None) for e in extents}
    return Inputs("/in", tuple(sizes.values()), tuple(extents), fields=IMAGE_FIELDS)


def shard_extents(groups: list[list[int]], row_bytes: float = 100.0) -> list[Extent]:
    """One shard a list, one extent a number of rows."""
    extents = []
    for index, rows in enumerate(groups):
        first = 0
        for num_rows in rows:
            path = f"s{index:05d}.parquet"
            extents.append(Extent(path, sum(rows), "v1", first, num_rows, row_bytes))
            first += num_rows
    return extents


def planned(extents: list[Extent], batch_size: int = 32, **fields: object) -> Plan:
    return make_plan(job(**fields), inputs_of(extents), SPEC, batch_size=batch_size)


def example_plan() -> Plan:
    extents = [
        *shard_extents([[5, 7], [400]], row_bytes=0.1),
        Extent("bad.parquet", 9, "v", 0, 1, 0.0, Reason.UNREADABLE_SHARD, "no footer"),
        Extent("odd \u00fc#.parquet", 9, "v", 0, 3, 1 / 3, Reason.BAD_SCHEMA, "n is 'string'"),
    ]
    types = [("n", pa.int64()), ("when", pa.timestamp("us", "UTC")), ("l", pa.list_(pa.string()))]
    inputs = replace(inputs_of(extents), pass_through=pa.schema(types))
    return make_plan(job(run__slice_rows=16), inputs, SPEC, batch_size=4)
