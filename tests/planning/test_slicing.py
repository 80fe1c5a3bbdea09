"""Slices of texts hold more rows than others, for rows of like length share a batch."""

from __future__ import annotations

import copy
import datetime as dt
from typing import Any

import pytest
from support.runs.plan_examples import DOCUMENT, shard_extents

from pipeline.job.job import Job
from pipeline.job.reading.loader import parse_job
from pipeline.planning.slicing import SliceSizes, make_units


def text_job(**source: Any) -> Job:
    document = copy.deepcopy(DOCUMENT)
    document["source"] |= {"text_column": "text", **source}
    del document["transform"]
    return parse_job(document, date=dt.date(2026, 11, 24), origin="test")


def sizes_of(rows: int, row_bytes: float, job: Job | None = None) -> list[int]:
    sizes = SliceSizes.of(job or text_job(), 256)
    units = make_units(shard_extents([[1] * rows], row_bytes), sizes)
    return [key.num_rows for unit in units for key in unit.slices()]


@pytest.mark.parametrize(
    ("row_bytes", "rows"), [(120.0, 2048), (512.0, 1024), (1024.0, 512), (20_000.0, 512)]
)
def test_the_shorter_the_texts_the_more_rows_has_a_slice(row_bytes: float, rows: int):
    assert sizes_of(9_000, row_bytes)[0] == rows


def test_towards_the_end_slices_become_smaller_so_that_no_actor_waits_long():
    sizes = sizes_of(20_000, 120.0)
    assert sum(sizes) == 20_000
    assert sizes[:3] == [2048] * 3
    assert sizes[-2] == 64
    left = 20_000
    for size in sizes[:-1]:
        assert size <= max(64, left / 4) + 1
        left -= size


def test_what_the_job_says_stays():
    job = text_job()
    job = job.model_copy(update={"run": job.run.model_copy(update={"slice_rows": 100})})
    assert set(sizes_of(1000, 120.0, job)) == {100}


def test_rows_that_only_reading_counts_have_slices_of_one_size():
    assert SliceSizes.of(text_job(), 256).uncounted == 1024
