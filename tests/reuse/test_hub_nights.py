"""Promise: nights over a dataset of the hub read one commit, and compute what it has changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from support.runs.carried_runs import assert_as_all_computed, change, make_partition
from support.runs.earlier_partitions import EarlierPartition
from support.runs.night_inputs import FORMATS, image
from support.servers.hubserver import HubServer

from pipeline.commit.plan_store import read_plan
from pipeline.published.originals import OriginalFinder
from pipeline.runs.context import RunContext
from pipeline.runs.work import Work

DATASET = "org/photos"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        server.page_size = 7
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


@dataclass
class Night(EarlierPartition):
    """A job over a dataset whose files lie in a folder until they are pushed."""

    folder: Path = Path()
    on_staging: Any = None
    """Called when the run has its plan."""

    def push(self, hub: HubServer, **others: bytes) -> str:
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        files = {f"in/{p.relative_to(self.folder).as_posix()}": p.read_bytes() for p in paths}
        hub.large = {name for name in files if name.endswith(("1.jpg", ".parquet"))}
        return hub.push(DATASET, {".gitattributes": b"", **files, **others})

    def stage(self, run: RunContext, work: Work) -> Any:
        if self.on_staging is not None:
            self.on_staging()
        return super().stage(run, work)


def make_night(tmp_path: Path, form: str) -> Night:
    made = make_partition(tmp_path, form, has_weights=True, run={"reuse": "inputs"})
    fields = {name: getattr(made, name) for name in ("out", "source", "sections", "weights")}
    return Night(f"hf://datasets/{DATASET}/in", folder=tmp_path / "in", **fields)


def rewrite(night: Night, form: str, name: str, first: int) -> None:
    kind = FORMATS[form]
    kind.write(night.folder / name, range(first, first + (1 if kind.is_file else 10)))


@pytest.mark.parametrize(
    ("form", "is_killed"),
    [("images", False), ("parquet", True), ("jsonl", False), ("uris", False)],
)
def test_a_run_reads_its_commit_whatever_is_pushed_meanwhile(
    form: str, is_killed: bool, hub: HubServer, tmp_path: Path
):
    night = make_night(tmp_path, form)
    commit = night.push(hub)
    for path in night.folder.rglob("*.jpg"):
        path.write_bytes(b"other bytes")
    change_all = {path.name for path in night.folder.iterdir() if path.is_file()}
    if is_killed:
        night.run_killed("slice_put:4")
        night = replace(night, lease_ttl_s=0.5)

    def push() -> None:
        for number, name in enumerate(sorted(change_all)):
            rewrite(night, form, name, 500 + 10 * number)
        night.push(hub)

    night.on_staging = push
    night.run()
    night.on_staging = None
    assert bool(night.report()["rows"]["resumed"]) == is_killed
    rows, failed = night.content()
    assert (len(rows), failed) == (40, [])
    asked = {path for _, path, _ in hub.requests if "/resolve/" in path}
    assert {path.partition("/resolve/")[2].partition("/")[0] for path in asked} == {commit}
    manifest = night.current()
    plan = read_plan(night.out, night.layout, manifest.plan_name)
    pinned = f"hf://datasets/{DATASET}@{commit}/in"
    assert plan.source_root == manifest.source["uri"] == manifest.card["input"] == pinned
    finder = OriginalFinder(night.out, night.layout, manifest, {})
    original = finder.find([rows[3]["row_id"]], "images")[0]
    assert (original.data, original.problem) == (image(3), None)
    assert_as_all_computed(replace(night, inputs=pinned), tmp_path)


def test_what_a_new_commit_has_changed_is_computed_and_no_more(hub: HubServer, tmp_path: Path):
    night = make_night(tmp_path, "images")
    first = night.push(hub)
    night.run()
    assert len(night.computed) == 40
    change(replace(night, inputs=str(night.folder)), "003.jpg", "004.jpg")
    (night.folder / "005.jpg").rename(night.folder / "new.jpg")
    night.push(hub)
    before = len(hub.requests)
    manifest = night.run()
    rows = night.report()["rows"]
    assert {"003.jpg", "004.jpg", "new.jpg"} <= {*night.computed}
    assert rows["carried"] + len(night.computed) == 40
    assert rows["carried"] >= 10, "some of the known rows are computed as a check"
    read = [path for _, path, _ in hub.requests[before:] if path.startswith("/datasets/")]
    assert len(read) <= len(night.computed) + 1, "and one tells the type of the files"
    assert {row["uri"] for row in night.content()[0]} == {
        f"hf://datasets/{DATASET}/in/{path.name}" for path in night.folder.iterdir()
    }
    assert_as_all_computed(night, tmp_path)

    commit = night.push(hub, **{"README.md": b"# Photos"})
    assert night.run().token == manifest.token, "no file of the input has changed"
    assert night.computed == []
    tagged = replace(night, inputs=f"hf://datasets/{DATASET}@{commit}/in")
    assert tagged.run().token == manifest.token
    tagged.inputs = f"hf://datasets/{DATASET}@{first}/in"
    tagged.run()
    assert {"005.jpg"} <= {*tagged.computed}
    assert tagged.report()["rows"]["carried"] > 0
    assert_as_all_computed(tagged, tmp_path)
