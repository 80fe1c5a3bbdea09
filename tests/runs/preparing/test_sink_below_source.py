"""Test that a sink is refused if a run would read its files, or its partitions have another key."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from shlex import split
from typing import Any

import models
import numpy as np
import pytest
from PIL import Image
from support.runs.published import DAY, publish_rows, snapshot

import pipeline
from pipeline.commit.layout import Layout
from pipeline.commit.manifest import require_one_key
from pipeline.core.errors import JobError
from pipeline.job.reading.loader import parse_job
from pipeline.job.source import Source
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.preparing.sink_below_source import require_disjoint
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
    with pytest.raises(JobError, match="so a run would read earlier output"):
        RunContext.of(parse_job(document, date=dt.date(2026, 11, 24), origin="job"), RunOptions())
    assert list((tmp_path / "in").iterdir()) == []


@pytest.mark.parametrize(
    ("published", "partition", "message"),
    [
        (DAY, None, r"has partitions by `date` \(date=2026-11-24\), but the job has no sink"),
        (None, DAY, r"has no partitions, but the job's is date=2026-11-24; "),
        (
            DAY,
            "trial=1",
            r"has partitions by `date` .*, but the job's is trial=1; ",
        ),
        (DAY, "date=2026-11-25", ""),
        (DAY, DAY, ""),
        (None, None, ""),
    ],
)
def test_an_output_has_partitions_of_one_key(
    published: str | None, partition: str | None, message: str, usual_store: Store
):
    for layout in (Layout(published), Layout(partition)):
        require_one_key(usual_store, layout)
    # What was refused or not published is in no reader's way.
    usual_store.put(Layout(partition).plan("f"), b"{}")
    publish_rows(usual_store, published)
    require_one_key(usual_store, Layout(published))
    if not message:
        require_one_key(usual_store, Layout(partition))
        return
    with pytest.raises(JobError, match=rf"{message}.*use another sink\.uri$"):
        require_one_key(usual_store, Layout(partition))


def job_of(folder: Path, partition: str | None) -> dict[str, Any]:
    (folder / "in").mkdir(exist_ok=True)
    for row in range(2):
        image = np.full((32, 32, 3), 40 * row, np.uint8)
        Image.fromarray(image).save(folder / "in" / f"{row}.png")
    return {
        "source": {"uri": str(folder / "in"), "format": "images"},
        "model": {"factory": "models:colours", "labels": models.LABELS},
        "transform": models.TRANSFORM,
        "sink": {"uri": str(folder / "out"), **({"partition": partition} if partition else {})},
    }


@pytest.mark.usefixtures("without_ray_here")
def test_no_operation_makes_an_output_of_two_keys(tmp_path: Path):
    store, allowed = Store(str(tmp_path / "out")), {"allow_import": ["models"]}
    publish_rows(store, DAY)
    before = snapshot(store, "")
    job, dated = job_of(tmp_path, None), job_of(tmp_path, "day=${date}")
    for refused in (
        lambda: pipeline.run(job, **allowed),
        lambda: pipeline.retry(job, **allowed),
        lambda: pipeline.plan(job, **allowed),
        lambda: pipeline.predict(
            job["source"]["uri"], model="models:colours", to=store.uri,
            overrides={"model.labels": models.LABELS, **{
                f"transform.{name}": value for name, value in models.TRANSFORM.items()}},
            **allowed,
        ),
    ):  # fmt: skip
        with pytest.raises(JobError, match=r"has partitions by `date` .*use another sink\.uri"):
            refused()
    [day] = pipeline.backfill(dated, from_="2026-11-24", to="2026-11-24", **allowed).dates
    assert (day.exit_code, "use another sink.uri" in str(day.error)) == (2, True)
    [row] = pipeline.status(dated, from_="2026-11-24", to="2026-11-24", **allowed).partitions
    assert str(row.a_run_would).startswith("end with 2: sink.uri")
    assert snapshot(store, "") == before


@pytest.mark.usefixtures("without_ray_here")
def test_the_advice_of_a_plan_can_be_followed(tmp_path: Path):
    job, allowed = job_of(tmp_path, None), {"allow_import": ["models"]}
    basis = pipeline.plan(job, tries=False, **allowed)["estimate"]["basis"]
    assert "run once with --set run.limit_rows=500 --set sink.uri=" in basis
    words = split(basis.partition("run once with ")[2].partition(",")[0])
    done = pipeline.run(job, overrides=[word for word in words if word != "--set"], **allowed)
    assert done.status == "published"
    assert pipeline.plan(job, tries=False, **allowed)["a_run_would"] == "publish the first version"
