"""Slices by time: as many rows as take half a minute, which the fingerprint knows nothing of."""

from __future__ import annotations

import copy
import datetime as dt
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs.plan_examples import DOCUMENT, job, planned, shard_extents

from pipeline.commit.layout import Layout
from pipeline.commit.plan_store import adopt_plan, plan_from_json, plan_to_json
from pipeline.job.job import Job
from pipeline.job.reading.loader import parse_job
from pipeline.planning.plan import cut_anew
from pipeline.planning.probe import Probe, Spread
from pipeline.planning.slicing import SliceSizes, units_of
from pipeline.storage.store import Store

PROBE = Probe(
    64, Spread(100.0, 20.0), Spread(50.0, 30.0), Spread(0.25, 0.1), 3.0, 2, 1, 1, "r", "d"
)


def writing_job(**run: object) -> Job:
    document = copy.deepcopy(DOCUMENT)
    document["source"] |= {"text_column": "text"}
    document["model"] = {"path": "m", "task": "generate"}
    del document["transform"]
    return parse_job({**document, "run": run}, date=dt.date(2026, 11, 24), origin="test")


@pytest.mark.parametrize(
    ("row_s", "at_once", "rows"),
    [(0.25, 1, 120), (0.25, 2, 60), (45.0, 1, 1), (600.0, 1, 1), (1e-9, 1, 8_192)],
)
def test_a_slice_has_as_many_rows_as_take_half_a_minute(row_s: float, at_once: int, rows: int):
    probe = replace(PROBE, row_s=Spread(row_s, 0.0), slices_at_once=at_once)
    assert probe.slice_rows == rows
    sizes = SliceSizes.of(writing_job(), 64, probe=probe)
    assert sizes.at(10**6, 100.0) == sizes.most == rows
    assert SliceSizes.of(writing_job(slice_rows=7), 64, probe=probe).most == 7


@given(st.floats(1e-3, 1e3), st.floats(0, 1e3), st.integers(2, 64), st.floats(1, 1e6))
def test_bounds_are_around_what_is_expected_and_nearer_the_more_rows_were_tried(
    mean: float, deviation: float, num_rows: int, times: float
):
    few = replace(PROBE, num_rows=num_rows).expected(Spread(mean, deviation), times)
    many = replace(PROBE, num_rows=4 * num_rows).expected(Spread(mean, deviation), times)
    assert 0 <= few.low <= many.low <= many.value <= many.high <= few.high
    assert few.value == pytest.approx(mean * times)


def test_of_tried_rows_the_mean_and_its_error_are_those_of_statistics():
    spread = Spread.of([2.0, 4.0, 6.0])
    assert spread == (4.0, 2.0)
    found = PROBE.expected(spread, 10)
    # Of 64 rows the quantile of Student's t is 1.998, of 8 it is 2.365.
    assert found.high - 40 == pytest.approx(10 * 1.998 * 2 / 8, rel=0.02)
    few = replace(PROBE, num_rows=8).expected(spread, 10)
    assert few.high - 40 == pytest.approx(10 * 2.365 * 2 / math.sqrt(8), rel=0.02)
    assert Spread.of([3.0]) == (3.0, 0.0)


def test_a_plan_keeps_its_probe_and_its_slices_whatever_later_runs_find(tmp_path: Path):
    # What is cut anew by a probe has the same rows and fingerprint.
    extents = shard_extents([[500, 300], [400]])
    plan = replace(planned(extents), extents=tuple(extents))
    first, second = (cut_anew(job(), plan, replace(PROBE, load_s=load)) for load in (1.0, 2.0))
    assert first.fingerprint == plan.fingerprint
    assert first.units == second.units
    assert sum(unit.num_rows for unit in first.units) == plan.num_rows
    assert plan_from_json(plan_to_json(first, "token"), first.fingerprint) == first
    store, layout = Store(str(tmp_path)), Layout(None)
    assert adopt_plan(store, layout, first).probe == first.probe
    assert adopt_plan(store, layout, second).probe == first.probe


@pytest.mark.parametrize(("source", "most"), [({}, 512), ({"input": "audio"}, 128)])
def test_slices_of_clips_and_images_fit_into_memory(source: dict[str, str], most: int):
    """Also where the task is left to the model: that rows were tried says that it writes."""
    document = copy.deepcopy(DOCUMENT)
    document["source"] |= {"uri_column": "at", **source}
    document["source"].pop("image_column", None)
    document["model"] = {"path": "m"}
    del document["transform"]
    job = parse_job(document, date=dt.date(2026, 11, 24), origin="test")
    quick = replace(PROBE, row_s=Spread(0.005, 0.001))
    assert SliceSizes.of(job, 16, probe=quick).most == most
    assert SliceSizes.of(job, 16, probe=PROBE).most == 120


@given(st.integers(1, 2_000), st.integers(1, 8), st.floats(0.01, 10))
def test_no_actor_gets_a_slice_more_than_another_where_slices_are_few(
    num_rows: int, num_actors: int, row_s: float
):
    probe = replace(PROBE, row_s=Spread(row_s, 0.0), num_actors=num_actors)
    units = [*units_of(writing_job(), shard_extents([[num_rows]]), 16, probe)]
    rows = [key.num_rows for unit in units for key in unit.slices()]
    assert sum(rows) == num_rows
    assert max(rows) <= probe.slice_rows
    rounds = math.ceil(num_rows / (probe.slice_rows * num_actors))
    if rounds <= 4 and num_rows <= 64 * rounds * num_actors:
        assert len(rows) <= num_actors * rounds
        assert len({*rows[:-1]}) <= 1


def test_slices_that_the_job_sizes_stay():
    fixed = SliceSizes.of(writing_job(slice_rows=50), 16, probe=PROBE)
    assert fixed.divided(70, 2) == fixed
