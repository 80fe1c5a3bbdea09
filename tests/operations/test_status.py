"""`pipeline status` of a job: missing and stale dates; it writes nothing."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from support.inputs.photos import build_images
from support.runs.cli import photos_job, write_job
from support.runs.published import publish_rows, snapshot
from support.runs.without_ray import without_ray

import pipeline
from pipeline.commit.layout import Layout
from pipeline.commit.lease import hold_lease
from pipeline.core.errors import JobError
from pipeline.operations.status import status_of_job
from pipeline.published.status import PartitionStatus
from pipeline.storage.store import Store

DAYS = ["2026-11-22", "2026-11-23", "2026-11-24"]
ALLOWED = ["models"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def job_over(tmp_path: Path, **sections: Any) -> str:
    """A job whose input is there for all days but the last one."""
    for day in DAYS[:-1]:
        if not (tmp_path / "in" / day).exists():
            build_images(tmp_path / "in" / day, 4, seed=3, num_bad=0)
    source = {"uri": str(tmp_path / "in" / "${date}"), "format": "images"}
    return write_job(tmp_path / "job.yaml", source, str(tmp_path / "out"), **sections)


def test_missing_stale_running_and_without_input(tmp_path: Path, store: Store):
    job = job_over(tmp_path)
    publish_rows(store, f"date={DAYS[1]}")
    before = snapshot(store)
    seen = pipeline.status(job, from_=DAYS[0], to=DAYS[-1], allow_import=ALLOWED)
    states = {
        partition.partition[5:]: (partition.state, partition.a_run_would)
        for partition in seen.partitions
    }
    assert states[DAYS[0]] == ("missing", "publish the first version")
    assert states[DAYS[1]] == ("stale", "replace version 1")
    assert states[DAYS[2]][0] == "no_input"
    assert str(states[DAYS[2]][1]).startswith("end with 8: ")
    assert snapshot(store) == before, "it only looks"
    with hold_lease(store, Layout(f"date={DAYS[0]}"), "run-1", 1e6):
        (one,) = status_of_job(job, from_=DAYS[0], to=DAYS[0], allow_import=ALLOWED).partitions
    assert (one.state, one.a_run_would) == ("running", "end with 4: it is running")


def test_a_date_whose_source_has_grown_is_stale_until_its_next_run(tmp_path: Path):
    job, day = job_over(tmp_path), DAYS[0]

    def seen() -> PartitionStatus:
        status = pipeline.status(job, from_=day, to=day, allow_import=ALLOWED)
        return status.partitions[0]

    with without_ray():
        pipeline.run(job, date=day, allow_import=ALLOWED)
        assert seen().state == "complete"
        build_images(tmp_path / "in" / day / "late", 2, seed=4, num_bad=0)
        assert (seen().state, seen().a_run_would) == ("stale", "replace version 1")
        assert str(seen().why).startswith("the source has grown: 2 shards new (late/")
        pipeline.run(job, date=day, allow_import=ALLOWED)
        assert (seen().state, seen().rows) == ("complete", 6)


def test_an_invalid_range_of_dates_is_refused(tmp_path: Path):
    job = job_over(tmp_path)
    with pytest.raises(JobError, match=r"the job has \$\{date\}: give --from"):
        pipeline.status(job)
    with pytest.raises(JobError, match="from 2026-11-24 to 2026-11-22: --from is after --to"):
        pipeline.status(job, from_=DAYS[-1], to=DAYS[0])
    with pytest.raises(JobError, match="is an output: overrides, allow_import and every"):
        pipeline.status(str(tmp_path / "out"), every="hour")
    with pytest.raises(JobError, match="its partition and storage_options are set in the job"):
        pipeline.status(job, partition="date=2026-11-24")
    whole = job_over(tmp_path, sink={"partition": "number=1"})
    with pytest.raises(JobError, match=r"the same for several dates: it must contain \$\{date\}"):
        pipeline.status(whole, from_=DAYS[0], to=DAYS[1], allow_import=ALLOWED)


def test_a_job_without_dates_is_one_row(tmp_path: Path):
    job = photos_job(tmp_path, 4, sink={"partition": "n=1"})
    (one,) = pipeline.status(job, allow_import=ALLOWED).partitions
    assert (one.partition, one.state) == ("n=1", "missing")
    loaded = pipeline.load_job(job, date=dt.date(2026, 11, 24))
    assert pipeline.status(loaded, allow_import=ALLOWED).partitions == (one,)
