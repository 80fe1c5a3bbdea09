"""The job files in jobs/: they load as they are, and no two write to the same place."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from support.runs.checkout import ROOT

from pipeline.job.job import Job
from pipeline.job.reading.loader import read_job

JOBS = ROOT / "jobs"
DATE = dt.date(2026, 11, 24)


def load(name: str, *overrides: str) -> Job:
    return read_job(str(JOBS / name), date=DATE, overrides=overrides)


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_job_file_loads_alone_and_with_other_places(path: Path):
    job = load(path.name)
    assert job.model.name == "efficientnet-lite0" or job.model.path
    assert job.source.uri.startswith("demo-output/input/")
    assert job.sink.uri.startswith("demo-output/output/")
    moved = load(path.name, "source.uri=s3://lake/in", "sink.uri=s3://lake/out")
    assert (moved.source.uri, moved.sink.uri) == ("s3://lake/in", "s3://lake/out")
    assert moved.model == job.model


def test_no_two_job_files_write_to_the_same_place():
    uris = [load(path.name).sink.uri for path in JOBS.glob("*.yaml")]
    assert len(uris) == len(set(uris)) >= 5


def test_the_partition_of_the_dag_is_its_logical_date():
    assert load("nightly.yaml").sink.partition == "date=2026-11-24"
