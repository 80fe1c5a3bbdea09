"""Readers never see a half-published version: each kind, after every step, as documented.

A program publishes, replaces, retries or rolls back one store operation at a time. Between any two,
every kind of reader reads, as the table in pipeline/commit/README.md says; and because a kill would
leave this state, a copy of the output is repaired from there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.runs.checkout import ROOT
from support.runs.earlier_partitions import EarlierPartition
from support.runs.published import DAY, Rows, prepare_version, publish_rows
from support.runs.published_rows import read_current
from support.runs.stepping import Program

from pipeline.commit.delta import Delta
from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest, Part, current_manifest, log_numbers, read_manifest
from pipeline.commit.publish import commit, repair, rollback, sync_published_folder
from pipeline.core.errors import JobError
from pipeline.published.verify import verify_output
from pipeline.storage.store import Store

pytestmark = pytest.mark.early

README = ROOT / "pipeline" / "commit" / "README.md"
LAYOUT = Layout(DAY)
OLD, NEW = Rows(1, num_slices=6), Rows(2, num_slices=4)
Seen = tuple[str, str, str, str]
"""By the folder's list, the list in `current.json`, the Delta table, and `read_predictions`."""


@dataclass(frozen=True)
class Act:
    """What replaces (or makes) a version, and how to do it again after a kill."""

    name: str
    begin: Callable[[Path], None]
    """Makes the output as it is before."""
    act: Callable[[Path, Store], object]


def publish_new(_: Path, store: Store) -> None:
    publish_rows(store, rows=NEW, table="delta")


def publish_old(folder: Path) -> None:
    publish_rows(Store(str(folder / "out")), rows=OLD, table="delta")


def publish_both(folder: Path) -> None:
    publish_rows(Store(str(folder / "out")), rows=NEW, table="delta")
    publish_old(folder)


def roll_back(_: Path, store: Store) -> None:
    rollback(store, LAYOUT, "back", keep_versions=2, table=Delta(store))


def partition_of(folder: Path, store: Store, broken: set[str]) -> EarlierPartition:
    # Nothing renews the lease meanwhile: a program has one thread that takes turns.
    sections = {"sink": {"table": "delta", "target_part_mib": 0.005}, "run": {"lease_ttl_s": 1e6}}
    return EarlierPartition(str(folder / "in"), store, {"format": "parquet"}, broken, sections)


def publish_a_partition(folder: Path) -> None:
    (folder / "in").mkdir()
    for shard in range(3):
        images = [b"%d %d" % (shard, row) for row in range(20)]
        pq.write_table(pa.table({"image": images}), folder / f"in/s{shard}.parquet")
    broken = {"s1.parquet#1", "s1.parquet#5", "s2.parquet#0"}
    partition_of(folder, Store(str(folder / "out")), broken).run()


def retry_a_partition(folder: Path, store: Store) -> None:
    partition_of(folder, store, {"s2.parquet#0"}).retry()


ACTS = (
    Act("first", lambda _: None, publish_new),
    Act("replacement", publish_old, publish_new),
    Act("rollback", publish_both, roll_back),
    Act("retry", publish_a_partition, retry_a_partition),
)
CASES = [
    pytest.param(act, id=act.name, marks=[pytest.mark.slow] if act.name == "retry" else [])
    for act in ACTS
]


def published_files(store: Store) -> set[tuple[str, int]]:
    """All that any reader goes by; most operations change nothing of it."""
    folders = (Path(store.uri) / "predictions", Path(store.uri) / LAYOUT.log)
    paths = [path for folder in folders for path in folder.rglob("*")]
    paths.append(Path(store.uri) / LAYOUT.current)
    return {(str(path), path.stat().st_mtime_ns) for path in paths if path.is_file()}


def readmes_table() -> list[Seen]:
    section = README.read_text().split("## What a reader sees")[1].split("\n#")[0]
    rows = [line.split("|")[2:-1] for line in section.splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in row) for row in rows[2:]]


def steps_of(program: Program) -> Iterator[str]:
    while not program.is_over:
        yield program.pending
        program.step()
    yield "the end"
    assert program.error is None, program.error


# ---------------------------------------------------------------- readers


def manifests(store: Store) -> list[Manifest]:
    return [read_manifest(store, LAYOUT, number) for number in log_numbers(store, LAYOUT)]


def name_of(paths: set[str], old: set[str], new: set[str]) -> str:
    """Say in the table's words which files these are."""
    assert paths <= old | new
    words = []
    for version, word in ((old, "old"), (new, "new")):
        if version & paths:
            words.append(word if version <= paths else f"some {word}")
    return " + ".join(words)


def by_folder(store: Store) -> set[str]:
    """What a glob over the folder finds, and can read."""
    paths = sorted((Path(store.uri) / LAYOUT.predictions).rglob("*.parquet"))
    for path in paths:
        pq.read_table(path, partitioning=None)
    return {str(path.relative_to(store.uri)) for path in paths}


def by_list(store: Store) -> set[str]:
    """What the list in `current.json` names; every file of it is there, as published."""
    if not store.exists(LAYOUT.current):
        return set()
    listed = Manifest.from_json(store.read_bytes(LAYOUT.current), LAYOUT.current)
    assert all(store.stat(part.path) for part in listed.all_parts)
    assert sum(rows_of(store, part) for part in listed.parts) == listed.num_predicted
    return {part.path for part in listed.parts}


def rows_of(store: Store, part: Part) -> int:
    return pq.ParquetFile(Path(store.uri) / part.path).metadata.num_rows


def by_delta(store: Store) -> set[str]:
    table = Delta(store).open()
    if table is None:
        return set()
    pa.table(table.to_pyarrow_table(columns=["row_id"]))
    paths = pa.table(table.get_add_actions()).column("path").to_pylist()
    return {f"predictions/{path}" for path in paths}


def by_manifest(store: Store) -> set[str]:
    """The version whose rows `read_predictions` gives."""
    try:
        rows = read_current(store, LAYOUT).column("row_id")
    except JobError:
        return set()
    manifest = current_manifest(store, LAYOUT)
    assert manifest is not None
    assert len(rows) == manifest.num_predicted
    return {part.path for part in manifest.parts}


READERS = (by_folder, by_list, by_delta, by_manifest)


@pytest.mark.parametrize("act", CASES)
def test_readers_see_the_documented_rows_after_every_step_and_a_kill_is_repaired(
    act: Act, tmp_path: Path
):
    store = Store(str(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    act.begin(tmp_path)
    old = {part.path for made in manifests(store)[-1:] for part in made.parts}
    bytes_of = {path: store.read_bytes(path) for path in old}
    seen: list[tuple[set[str], ...]] = []
    program = Program(act.name, store.uri, lambda stepped: act.act(tmp_path, stepped))
    looked_at: set[tuple[str, int]] | None = None
    for _ in steps_of(program):
        present = published_files(store)
        if present == looked_at:
            continue
        looked_at = present
        assert store.exists(LAYOUT.current) or not store.exists(LAYOUT.success), "its list first"
        views = tuple(reader(store) for reader in READERS)
        for path in old:  # a reader that began with the old list finds the old bytes, or no file
            assert not store.exists(path) or store.read_bytes(path) == bytes_of[path]
        if not seen or views != seen[-1]:
            seen.append(views)
            assert_cured(store, tmp_path / "cured", act, tmp_path)
    new = {part.path for part in manifests(store)[-1].parts}
    assert not new & old
    assert len(new) > 1
    assert len(old) != 1
    rows = [tuple(name_of(paths, old, new) for paths in views) for views in seen]
    expected = readmes_table()
    if act.name == "first":  # old is nothing, and nothing moves out
        expected = [
            tuple(cell.replace("old", "").strip(" +") for cell in row) for row in expected[:-2]
        ]
    assert [moment for moment, _ in groupby(rows)] == expected


def assert_cured(store: Store, copied: Path, act: Act, folder: Path) -> None:
    """From what a kill leaves here, doing it again leads to one whole version for all readers."""
    for again in ("the same", "nothing new"):
        shutil.copytree(store.uri, copied)
        cured = Store(str(copied))
        shutil.rmtree(copied / LAYOUT.leases, ignore_errors=True)
        number = (log_numbers(cured, LAYOUT) or [0])[-1]
        if again == "the same":
            act.act(folder, cured)
        else:
            repair(cured, LAYOUT, 2, table=Delta(cured), is_last=True)
        if again == "the same" or number:
            manifest = manifests(cured)[-1]
            parts = {part.path for part in manifest.parts}
            assert [reader(cured) for reader in READERS] == [parts] * 4
            commits = [commit["pipeline.version"] for commit in Delta(cured).open().history()]
            assert len({*commits}) == len(commits), "once each, whatever was killed"
            verify_output(cured.uri, DAY, {})
        shutil.rmtree(copied)


def test_a_run_that_fails_while_it_places_parts_takes_them_back(any_store: Store):
    """Another command has collected its staging meanwhile, say."""
    first = publish_rows(any_store, rows=OLD)
    manifest, folder = prepare_version(any_store, LAYOUT, NEW, 2, "late")
    lost = manifest.parts[-1].path
    any_store.delete([f"{folder}/{lost}"])
    with pytest.raises(FileNotFoundError, match=lost.rpartition("/")[2]):
        commit(any_store, LAYOUT, manifest, folder)
    assert current_manifest(any_store, LAYOUT) == first
    verify_output(any_store.uri, DAY, dict(any_store.storage_options))


def test_a_late_run_does_not_overwrite_the_newer_list(tmp_path: Path):
    """It was suspended in the midst of settling, and another version was published meanwhile."""
    store = Store(str(tmp_path))
    publish_rows(store, rows=OLD)
    manifest, folder = prepare_version(store, LAYOUT, NEW, 2, "late")
    committed = commit(store, LAYOUT, manifest, folder)

    def settle_late(stepped: Store) -> None:
        sync_published_folder(stepped, LAYOUT, committed, 2)

    program = Program("late", store.uri, settle_late)
    while not program.pending.endswith("current.json"):  # it is about to look at what is there
        program.step()
    newest = publish_rows(store, rows=OLD)
    assert newest.number == 3
    while not program.is_over:
        assert by_list(store) == {part.path for part in newest.parts}
        program.step()
    assert program.error is None
    verify_output(store.uri, DAY, {})
