"""`pipeline retry`: interrupted at each of its steps, and as a user runs it."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.faults.faultplaces import COPY, CREATE, DELETE, PUT, Bucket, Disk, Point
from support.inputs.photos import build_images
from support.runs.cli import pipeline, write_job
from support.runs.earlier_partitions import LAYOUT, EarlierPartition, damage, write_same_time
from support.runs.protocol import Children, assert_readable
from support.runs.published import DAY
from support.runs.published_rows import read_predictions
from support.runs.selection import quick_cases
from support.servers.faultproxy import FaultProxy
from support.servers.httpserver import WebServer, answer, ok
from support.servers.s3server import S3Server

from pipeline.commit.manifest import current_manifest, log_numbers
from pipeline.commit.published.rollback import history_numbers
from pipeline.commit.published.verify import verify_output
from pipeline.storage.store import Store

DATE = DAY.partition("=")[2]
pytestmark = [pytest.mark.usefixtures("impatient"), pytest.mark.early]
POINTS = (
    Point("leased", CREATE, r"/lease/\d+\.json"),
    Point("planned", CREATE, r"/plan/"),
    Point("slice_put:2", PUT, r"/staging/\w+/000000-"),
    Point("tiled", PUT, r"/compacted-[\w-]+/predictions/"),
    Point("judged", PUT, r"/compacted-[\w-]+/predictions/"),
    Point("compacted", PUT, r"/compacted-[\w-]+/quarantine/"),
    Point("placed_part:2", COPY, r"predictions/[^/]+/part-"),
    Point("before_log", CREATE, r"/log/"),
    Point("after_log", COPY, r"/history/", is_committed=True),
    Point("kept", DELETE, r"predictions/[^/]+/part-", is_committed=True),
    Point("retired:2", DELETE, r"/history/", is_committed=True),
    Point("before_current:2", PUT, r"/current\.json", is_committed=True),
)
QUICK = ("tiled", "placed_part:2", "before_log", "retired:2")
"""Steps of which `make test` has a kill; test_protocol has all of a run."""


@dataclass(frozen=True)
class Before:
    """A partition in its second version, its inputs, and what a retry must make of it."""

    inputs: Path
    files: dict[str, bytes]
    expected: Any

    def partition(self, store: Store) -> EarlierPartition:
        sections = {"sink": {"keep_versions": 1}}
        return EarlierPartition(
            str(self.inputs), store, {"format": "parquet"}, {"s0.parquet#7"}, sections
        )


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Before:
    folder = tmp_path_factory.mktemp("before")
    inputs, store = folder / "in", Store(str(folder / "out"))
    inputs.mkdir()
    for shard in range(3):
        images = [b"%d %d" % (shard, row) for row in range(14)]
        pq.write_table(pa.table({"image": images}), inputs / f"s{shard}.parquet", row_group_size=4)
    whole = damage(inputs / "s1.parquet")
    partition = Before(inputs, {}, None).partition(store)
    partition.broken |= {f"s{shard}.parquet#{row}" for shard in (0, 2) for row in (0, 1, 8, 13)}
    partition.run()
    partition.broken.remove("s2.parquet#1")
    assert partition.retry() == "published"
    write_same_time(inputs / "s1.parquet", whole)
    files = {file.path: store.read_bytes(file.path) for file in store.list_files()}
    partition = Before(inputs, {}, None).partition(store)
    assert partition.retry() == "published"
    assert list(partition.failed()) == ["s0.parquet#7"]
    assert partition.current().num_predicted == 41
    return Before(inputs, files, partition.content())


@pytest.fixture(scope="module")
def children() -> Children:
    return Children()


@pytest.fixture(scope="module")
def proxy(s3: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3.endpoint_url) as proxy:
        yield proxy


def retry_into(store: Store, *, before: Before) -> None:
    before.partition(store).retry()


def faults() -> list[Any]:
    """Each step on a disk; in a bucket the lost answers of the steps that only a retry has."""
    cases = list(product(POINTS, ("exit", "raise", "lost answer"), ["local"]))
    only_here = ("tiled", "compacted", "before_log")
    cases += [(point, "lost answer", "s3") for point in POINTS if point.name in only_here]
    return quick_cases(
        cases,
        lambda point, fault, where: fault == "exit" and point.name in QUICK,
    )


@pytest.mark.parametrize(
    ("point", "fault", "where"),
    faults(),
    ids=lambda value: value.name.partition(":")[0] if isinstance(value, Point) else value,
)
def test_a_fault_at_any_step_changes_nothing_of_what_comes_of_a_retry(
    point: Point,
    fault: str,
    where: str,
    before: Before,
    children: Children,
    tmp_path: Path,
    request: pytest.FixtureRequest,
):
    place = Disk(tmp_path / "out", children)
    if where == "s3":
        place = Bucket(*map(request.getfixturevalue, ("s3", "proxy")), children)
    store = place.store
    for path, data in before.files.items():
        store.put(path, data)
    act = {"exit": place.die_at, "raise": place.fail_at, "lost answer": place.lose_at}[fault]
    is_done = act(point, partial(retry_into, before=before)) or point.is_committed

    # A reader of the manifest sees one whole version: the old one up to the commit.
    seen = assert_readable(store)
    assert seen is not None
    assert seen.number == (3 if is_done else 2)

    # Again: the same result. Rows that had failed go once more, and nothing comes of it.
    partition = before.partition(store)
    assert partition.retry() == ("nothing_to_do" if is_done else "published")
    assert partition.content() == before.expected
    assert log_numbers(store, LAYOUT) == [1, 2, 3]
    assert history_numbers(store, LAYOUT) == [2]
    verify_output(store.uri, DAY, dict(store.storage_options))
    assert partition.run().number == 3
    assert partition.computed == []


def quarantine_of(out: Path) -> dict[str, str]:
    store = Store(str(out))
    manifest = current_manifest(store, LAYOUT)
    assert manifest is not None
    tables = [pq.read_table(out / part.path) for part in manifest.quarantine_parts]
    rows = [row for table in tables for row in table.to_pylist()]
    return {row["row_id"]: row["reason"] for row in rows}


@pytest.mark.slow
@pytest.mark.no_ray
def test_images_that_a_disk_spoiled_come_in_when_it_is_mended(tmp_path: Path) -> None:
    folder, out = tmp_path / "images", tmp_path / "out"
    bad = build_images(folder, 40, seed=8, num_bad=2)
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.*"))
    spoiled = [name for name in names if name not in bad][5:20:5]
    twin = "zz-twin.jpg"
    shutil.copy(folder / spoiled[0], folder / twin)
    kept = {name: damage(folder / name) for name in spoiled}
    source = {"uri": str(folder), "format": "images"}
    gates = {"max_error_pct": 20.0}
    job = write_job(tmp_path / "job.yaml", source, str(out), gates=gates, run={"slice_rows": 8})
    assert pipeline("retry", job, "--date", DATE).code == 2
    first = pipeline("run", job, "--date", DATE, "--json")
    assert (first.code, first.json["rows"]["quarantined"]) == (0, 5), first.stderr
    for name, data in kept.items():
        write_same_time(folder / name, data)

    done = pipeline("retry", job, "--date", DATE, "--json")
    assert done.code == 0, done.stderr
    assert done.json["status"] == "published"
    found = {name: done.json["retry"][name] for name in ("entries", "recovered", "failed_again")}
    assert found == {"entries": 5, "recovered": 3, "failed_again": 2}
    rows = done.json["rows"]
    assert (rows["total"], rows["predicted"], rows["computed"], rows["resumed"]) == (41, 39, 5, 36)
    assert quarantine_of(out) == {name: reason.value for name, reason in bad.items()}
    table = read_predictions(str(out), DAY)
    assert table["row_id"].to_pylist() == [n for n in [*names, twin] if n not in bad]
    by_id = {row["row_id"]: (row["label"], row["score"]) for row in table.to_pylist()}
    assert by_id[spoiled[0]] == by_id[twin]
    verify_output(str(out), DAY, {})
    same = pipeline("run", job, "--date", DATE, "--json")
    assert (same.code, same.json["status"]) == (0, "nothing_to_do"), same.stderr

    # Nothing to retry needs no Ray, so that no address can be wrong; other settings are refused.
    nowhere = ("--address", "127.0.0.1:1")
    nothing = pipeline("retry", job, "--date", DATE, "--reason", "timeout", "--json", *nowhere)
    assert (nothing.code, nothing.json["status"]) == (0, "nothing_to_do"), nothing.stderr
    assert "nothing to retry: quarantined stay 2 with other reasons" in nothing.stderr
    refused = pipeline("retry", job, "--date", DATE, "--set", "model.top_k=1", *nowhere)
    assert refused.code == 2
    assert "`pipeline run` makes a new version" in refused.stderr


@pytest.mark.slow
@pytest.mark.no_ray
def test_rows_behind_a_server_that_was_down_come_in_when_it_is_up(tmp_path: Path) -> None:
    folder, out = tmp_path / "table", tmp_path / "out"
    folder.mkdir()
    build_images(tmp_path / "photos", 24, seed=9, num_bad=0)
    photos = [path.read_bytes() for path in sorted((tmp_path / "photos").rglob("*.*"))]
    with WebServer() as web:
        paths = [f"/{row}.jpg" for row in range(24)]
        for row, path in enumerate(paths):
            web.scripts[path] = [answer(403) if row % 4 == 1 else ok(photos[row])]
        for shard in range(3):
            rows = range(8 * shard, 8 * shard + 8)
            table = {"link": [web.url(paths[r]) for r in rows], "id": [f"photo-{r}" for r in rows]}
            pq.write_table(pa.table(table), folder / f"s{shard}.parquet")
        unread = damage(folder / "s1.parquet")
        source = {
            "uri": str(folder), "format": "parquet", "uri_column": "link", "id_column": "id",
            "private_hosts": [web.authority], "allow_http": True,
        }  # fmt: skip
        sink = {"partition_columns": ["label"]}
        job = write_job(
            tmp_path / "job.yaml", source, str(out), sink=sink, gates={"max_error_pct": 50.0}
        )
        first = pipeline("run", job, "--date", DATE, "--json")
        assert first.code == 0, first.stderr
        assert first.json["reasons"] == {"unreachable": 4, "unreadable_shard": 1}

        for row, path in enumerate(paths):
            web.scripts[path] = [ok(photos[row])]
        write_same_time(folder / "s1.parquet", unread)
        killed = pipeline(
            *("retry", job, "--date", DATE, "--reason", "unreachable"),
            env={"PIPELINE_FAILPOINT": "before_log:kill"},
        )
        assert killed.code == -signal.SIGKILL, killed.stderr
        num_requests = len(web.paths)
        again = pipeline("retry", job, "--date", DATE, "--reason", "unreachable", "--json")
        assert again.code == 0, again.stderr
        assert (again.json["retry"]["recovered"], again.json["rows"]["predicted"]) == (4, 16)
        assert len(web.paths) == num_requests, "what was staged is not fetched again"
        assert quarantine_of(out) == {"s1.parquet": "unreadable_shard"}
        rest = pipeline("retry", job, "--date", DATE, "--json")
        assert rest.code == 0, rest.stderr
        assert (rest.json["retry"]["entries"], rest.json["retry"]["recovered"]) == (1, 8)
        assert len(web.paths) == num_requests + 8
    assert quarantine_of(out) == {}
    table = read_predictions(str(out), DAY)
    by_label: dict[str, list[int]] = {}
    for row in table.to_pylist():
        by_label.setdefault(row["label"], []).append(int(row["row_id"].partition("-")[2]))
    assert all(rows == sorted(rows) for rows in by_label.values())
    assert sorted(row for rows in by_label.values() for row in rows) == list(range(24))
    verify_output(str(out), DAY, {})
