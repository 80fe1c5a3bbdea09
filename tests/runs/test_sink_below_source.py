"""A sink whose files a run would read is refused; one that lies harmlessly near is not."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import JobError
from pipeline.job.reading.loader import parse_job
from pipeline.job.source import Source
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.sink_below_source import require_disjoint
from pipeline.storage.store import Store


def source_of(uri: object, **fields: Any) -> Source:
    return Source(uri=str(uri), format="parquet", **fields)


def refused(source: Source, sink: Store) -> bool:
    try:
        require_disjoint(source, sink)
    except JobError as error:
        return str(error).startswith("sink.uri = ")
    return False


CASES = [
    # source, sink, whether the source would read what the sink holds
    ("in", "in/out", True),
    ("in", "in", True),
    ("in", "in/a/b", True),
    ("out/predictions", "out", True),
    ("out/predictions/date=2026-11-24", "out", True),
    ("out/_control/all", "out", True),
    ("in/**", "in/out", True),
    ("in/**/*.parquet", "in/out", True),
    ("in/*/*/*.parquet", "in/out", True),
    ("in/*/predictions/*.parquet", "in/out", True),
    ("in/o*/**", "in/out", True),
    ("in", "out", False),
    ("in", "inside", False),
    ("in/photos", "in", False),
    ("in/photos", "in/photos-out", False),
    ("out/predictions2", "out", False),
    ("in/*.parquet", "in/out", False),
    ("in/*.parquet", "in", False),
    ("in/20*/*.parquet", "in/out", False),
    ("in/[op]*/*/*.parquet", "in/out", True),
    ("in/[ab]?t/*/*.parquet", "in/out", False),
    ("in/**/x/*.parquet", "in/out", True),
    ("in/a/**/*.parquet", "in/out", False),
    ("in/*/*.parquet", "in/out", False),
    ("in/x/**", "in", False),
]


@pytest.mark.parametrize("root", ["/data", "s3://lake"])
@pytest.mark.parametrize(("source", "sink", "meets"), CASES)
def test_a_sink_that_would_be_read_is_refused(
    source: str, sink: str, meets: bool, root: str
) -> None:
    assert refused(source_of(f"{root}/{source}"), Store(f"{root}/{sink}")) == meets


def test_paths_are_compared_as_they_are_resolved(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "alias").symlink_to("in")
    out = Store(str(tmp_path / "in" / "out"))
    for uri in (f"{tmp_path}/alias", f"{tmp_path}/x/../in/", f"file://{tmp_path}/in"):
        assert refused(source_of(uri), out)
    assert refused(source_of(tmp_path / "in"), Store(f"{tmp_path}/alias/out"))
    assert not refused(source_of(tmp_path / "in"), Store(f"s3://{tmp_path.name}/in"))


def test_only_the_files_that_a_job_names_count(tmp_path: Path) -> None:
    out = Store(str(tmp_path / "out"))
    assert not refused(source_of(tmp_path, files=("a.parquet", "b/c.parquet")), out)
    assert refused(source_of(tmp_path, files=("out/predictions/part-0.parquet",)), out)


def test_one_uri_of_two_services_is_two_places_and_two_spellings_are_one() -> None:
    here, there = {"endpoint_url": "http://a"}, {"client_kwargs": {"endpoint_url": "http://b"}}
    source = source_of("s3://lake/in", storage_options=here)
    assert not refused(source, Store("s3://lake/in/out", there))
    assert refused(source, Store("s3://lake/in/out", here))
    assert refused(source, Store("s3://lake/in/out"))
    assert refused(source_of("abfs://lake@acc.dfs.core.windows.net/in"), Store("az://lake/in/out"))
    other = Store("abfs://lake@other.dfs.core.windows.net/in/out")
    assert not refused(source_of("abfs://lake@acc.dfs.core.windows.net/in"), other)


def test_a_file_is_no_sink(tmp_path: Path):
    (tmp_path / "f.json").write_text("{}")
    sink = Store(str(tmp_path / "f.json"))
    with pytest.raises(JobError, match=r"^sink.uri = .*f\.json is a file; give a folder$"):
        require_disjoint(source_of(tmp_path / "in"), sink)
    require_disjoint(source_of(tmp_path / "in"), Store(str(tmp_path / "none")))


def test_a_run_is_refused_before_anything_is_written_below_its_sink(tmp_path: Path):
    (tmp_path / "in").mkdir()
    document = {
        "source": {"uri": str(tmp_path / "in"), "format": "images"},
        "model": {"name": "efficientnet-lite0"},
        "sink": {"uri": str(tmp_path / "in" / "out")},
    }
    with pytest.raises(JobError, match="so that a run would read the output of the last"):
        RunContext.of(parse_job(document, date=dt.date(2026, 11, 24), origin="job"), RunOptions())
    assert list((tmp_path / "in").iterdir()) == []
