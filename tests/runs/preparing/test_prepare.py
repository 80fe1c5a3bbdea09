"""Rows of tables have large slices and batches, bounded by bytes; lists have those of sequences."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.runs.cli import write_job
from support.runs.plan_examples import shard_extents

from pipeline.core.errors import JobError
from pipeline.job.job import Job
from pipeline.job.reading.loader import read_job
from pipeline.planning.plan import Plan
from pipeline.planning.slicing import SliceSizes, make_units
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.preparing.prepare import prepare


def job_of(folder: Path, *features: Any, **sections: Any) -> Job:
    source = {"uri": str(folder / "in"), "format": "parquet", "features": [*features]}
    model = {"factory": "models:sums", "task": "regress", "targets": ["a", "b"]}
    path = write_job(
        *(folder / "job.yaml", source, str(folder / "out")),
        **{"transform": None, "model": model, **sections},
    )
    return read_job(path, date=dt.date(2026, 11, 24))


def plan_of(job: Job) -> Plan:
    return prepare(RunContext.of(job, RunOptions(allow_import=("models",))))[0]


def write(folder: Path, **columns: Any) -> None:
    (folder / "in").mkdir()
    pq.write_table(pa.table(columns), folder / "in" / "a.parquet")


def sizes_of(job: Job, group_rows: int, num_groups: int, row_bytes: float) -> list[int]:
    extents = shard_extents([[group_rows] * num_groups], row_bytes)
    units = [*make_units(extents, SliceSizes.of(job, 2048, "classify"))]
    assert len(units) <= num_groups  # each row group is read once, from its beginning
    return [key.num_rows for unit in units for key in unit.slices()]


def test_ten_million_rows_have_a_few_dozen_slices(tmp_path: Path):
    sizes = sizes_of(job_of(tmp_path, "a"), 1_000_000, 10, 48.0)
    assert sum(sizes) == 10_000_000
    assert max(sizes) == 524_288
    assert len(sizes) < 60


def test_wide_rows_have_slices_of_48_mib(tmp_path: Path):
    sizes = sizes_of(job_of(tmp_path, "a"), 50_000, 4, 4_000.0)
    assert max(sizes) == 12_288  # 48 MiB, in whole batches
    assert sum(sizes) == 200_000


@pytest.mark.parametrize(("num_gpus", "rows"), [(0, 2_048), (1, 16_384)])
def test_a_batch_has_thousands_of_rows(num_gpus: int, rows: int, tmp_path: Path):
    write(tmp_path, a=[1.0], plan=["x"])
    plan = {"column": "plan", "categories": ["x", "y"]}
    job = job_of(tmp_path, "a", plan, resources={"num_gpus": num_gpus})
    assert plan_of(job).batch_size == rows


def test_lists_may_be_sequences_and_wide_rows_are_bounded_by_bytes(tmp_path: Path):
    lists = pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))
    wide = {f"f{index}": np.zeros(1, np.float32) for index in range(4_000)}
    write(tmp_path, features=lists, **wide)
    assert plan_of(job_of(tmp_path, "features", "f0")).batch_size == 32
    assert plan_of(job_of(tmp_path, *wide)).batch_size == 1_024
    section = {"factory": "models:sums", "task": "regress", "targets": ["a", "b"], "batch_size": 7}
    assert plan_of(job_of(tmp_path, "features", model=section)).batch_size == 7


def test_the_length_of_vectors_is_measured_if_the_job_does_not_say_it(tmp_path: Path):
    write(tmp_path, a=[1.0, 2.0])

    def plan_with(**fields: int) -> Plan:
        model = {"factory": "models:sums", "task": "embed", **fields}
        return plan_of(job_of(tmp_path, "a", model=model))

    measured = plan_with()
    vector = pa.list_(pa.float32(), 2)
    assert [*measured.task_fields] == [pa.field("embedding", vector)]
    assert measured.fingerprint == plan_with(embedding_dim=2).fingerprint


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ({"task": "regress", "targets": ["price", "price"]}, "price"),
        ({"task": "raw", "outputs": [{"shape": [2]}, {"shape": [2]}]}, "output"),
    ],
)
def test_columns_of_one_name_are_refused_before_the_run(
    model: dict[str, Any], name: str, tmp_path: Path
):
    write(tmp_path, a=[1.0, 2.0])
    with pytest.raises(JobError, match=f"2 columns of the outputs are called '{name}'"):
        plan_of(job_of(tmp_path, "a", model={"factory": "models:sums", **model}))
