"""Test that slices of texts have many rows, and few if a language model writes or chooses."""

from __future__ import annotations

import copy
import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs.plan_examples import DOCUMENT, shard_extents

from pipeline.job.job import Job
from pipeline.job.reading.loader import parse_job
from pipeline.planning.slicing import SliceSizes, make_units, units_of, written_rows


def text_job(**source: Any) -> Job:
    document = copy.deepcopy(DOCUMENT)
    document["source"] |= {"text_column": "text", **source}
    del document["transform"]
    return parse_job(document, date=dt.date(2026, 11, 24), origin="test")


def language_job(model: dict[str, Any], source: dict[str, Any], **run: Any) -> Job:
    """A job that leaves the task to the model directory."""
    document = copy.deepcopy(DOCUMENT)
    document["source"] = {"uri": "in", "format": "parquet", **source}
    document |= {"model": {"path": "m", **model}, "run": run}
    del document["transform"]
    return parse_job(document, date=dt.date(2026, 11, 24), origin="test")


def written_slices(num_rows: int, **run: Any) -> list[int]:
    """Rows of the slices where 16 rows of 128 tokens are written at once."""
    writes = language_job({}, {"text_column": "text"}, **run)
    units = units_of(writes, shard_extents([[num_rows]]), 16, "generate")
    return [key.num_rows for unit in units for key in unit.slices()]


def sizes_of(rows: int, row_bytes: float, job: Job | None = None) -> list[int]:
    sizes = SliceSizes.of(job or text_job(), 256, "classify")
    units = make_units(shard_extents([[1] * rows], row_bytes), sizes)
    return [key.num_rows for unit in units for key in unit.slices()]


def test_the_shorter_the_texts_the_more_rows_has_a_slice():
    slice_rows = [sizes_of(4_200, row_bytes)[0] for row_bytes in (512.0, 1024.0, 20_000.0)]
    assert slice_rows == [1024, 512, 512]


def test_what_the_job_says_stays():
    job = text_job()
    job = job.model_copy(update={"run": job.run.model_copy(update={"slice_rows": 100})})
    assert set(sizes_of(1000, 120.0, job)) == {100}


def test_rows_that_only_reading_counts_have_slices_of_one_size():
    assert SliceSizes.of(text_job(), 256, "classify").uncounted == 1024


@pytest.mark.parametrize(
    ("new_tokens", "batch_size", "num_rows", "rows"),
    [
        (128, 16, None, 64),  # four batches
        (128, 64, None, 128),  # 16,384 tokens
        (8, 64, None, 256),  # where outputs are short, prompts take the time
        (4_096, 64, None, 16),
        (128, 1, None, 16),
        (128, 16, 10**6, 64),
        (128, 16, 256, 64),
        (128, 16, 192, 48),  # three of 64 would keep one of two actors waiting
        (128, 16, 64, 32),
        (128, 16, 20, 32),
        (4_096, 64, 20, 16),
    ],
)
def test_slices_of_written_texts_have_so_many_tokens_in_few_batches(
    new_tokens: int, batch_size: int, num_rows: int | None, rows: int
):
    assert written_rows(new_tokens, batch_size, num_rows) == rows


def test_on_a_gpu_a_slice_of_written_texts_is_as_large_however_few_there_are():
    slice_rows = [
        written_rows(128, 256, num_rows, is_on_gpu=True) for num_rows in (None, 300, 10**6)
    ]
    assert slice_rows == [1024, 1024, 1024]


@given(st.integers(1, 2_000))
def test_one_two_or_four_actors_get_as_many_slices_of_texts_to_write(num_rows: int):
    rows = written_slices(num_rows)
    assert sum(rows) == num_rows
    assert max(rows) <= 64
    assert len({*rows[:-1]}) <= 1
    if rows[0] > 32:
        assert len(rows) % 4 == 0


def test_slices_of_written_texts_that_the_job_sizes_stay():
    assert written_slices(120, slice_rows=50) == [50, 50, 20]


@pytest.mark.parametrize(("batch_size", "rows"), [(16, 64), (64, 128)])
def test_slices_of_clips_that_are_written_to_fit_into_memory(batch_size: int, rows: int):
    clips = language_job({}, {"uri_column": "at", "input": "audio"})
    assert SliceSizes.of(clips, batch_size, "generate").most == rows


@pytest.mark.parametrize(
    ("row_bytes", "rows"), [(120.0, 512), (512.0, 256), (1024.0, 128), (20_000.0, 32)]
)
def test_the_longer_the_prompts_of_choices_the_fewer_rows_has_a_slice(row_bytes: float, rows: int):
    asks = language_job(
        {"task": "choices", "choices": ["good", "bad"], "prompt": "{text}?"},
        {"text_column": "text"},
    )
    sizes = SliceSizes.of(asks, 256, "choices")
    assert sizes.at(10**6, row_bytes) == rows
    assert sizes.uncounted == 256
