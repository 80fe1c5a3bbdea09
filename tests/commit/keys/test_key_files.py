"""Keys come and go with their versions, and are believed only as they were written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from support.runs.published import (
    DAY,
    Rows,
    age_files,
    prepare_version,
    publish_rows,
    read_part_table,
    slice_table,
)
from support.runs.version_keys import hash_of

from pipeline.commit.keys.key_index import UNKNOWN, KeyIndex
from pipeline.commit.keys.meta import META, UNITS, NoKeys, VersionKeys, bucket_name, read_keys
from pipeline.commit.keys.pins import pin, pinned, unpin
from pipeline.commit.keys.shards import read_shards
from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest
from pipeline.commit.publish import commit, repair, sync_published_folder
from pipeline.commit.published.garbage import collect_garbage
from pipeline.commit.published.rollback import history_numbers, rollback
from pipeline.commit.published.verify import verify_output
from pipeline.core.environment import FAILPOINT
from pipeline.core.errors import PipelineError, PublishConflict
from pipeline.process import failpoints
from pipeline.storage.store import Store

LAYOUT = Layout(DAY)
ROWS = Rows(keys="content", unreadable_shards=1)
LONG_AGO_S = -3600.0
"""As a period of grace: everything is older."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def verify(store: Store) -> None:
    verify_output(store.uri, DAY, dict(store.storage_options))


def keys_of(store: Store, manifest: Manifest) -> VersionKeys:
    return read_keys(store, LAYOUT, manifest)


def key_folders(store: Store) -> set[str]:
    return {file.path.rpartition("/")[0] for file in store.list_files(LAYOUT.all_keys)}


def hashes_of(ids: list[str]) -> np.ndarray:
    return np.frombuffer(b"".join(map(hash_of, ids)), np.uint8).reshape(-1, 16)


def find_in_process(keys: VersionKeys, ids: list[str]) -> list[int]:
    return KeyIndex(keys).find(hashes_of(ids)).tolist()


def test_each_prediction_is_found_by_its_shard_and_by_its_content(any_store: Store):
    manifest = publish_rows(any_store, rows=ROWS)
    verify(any_store)
    keys = keys_of(any_store, manifest)
    published = [
        value
        for part in manifest.parts
        for value in read_part_table(any_store, part).column("row_id").to_pylist()
    ]
    assert len(manifest.parts) == 2
    shards = read_shards(keys)
    assert [shard.uri.rpartition("/")[2] for shard in shards] == [
        f"shard-{index}.parquet" for index in range(4)
    ]
    for index, shard in enumerate(shards):
        ids = ROWS.ids(index)
        good = [value for row, value in enumerate(ids) if row not in shard.failed]
        assert shard.num_rows == len(ids)
        assert published[shard.first : shard.first + len(good)] == good
    everything = [v for i in range(4) for v in slice_table(ROWS, i).column("row_id").to_pylist()]
    places = {value: place for place, value in enumerate(published)}
    assert find_in_process(keys, everything) == [places.get(v, UNKNOWN) for v in everything]


def test_processes_of_a_node_fetch_a_file_once(store: Store, monkeypatch: pytest.MonkeyPatch):
    manifest = publish_rows(store, rows=ROWS)
    keys = keys_of(store, manifest)
    ids = ROWS.ids(0)
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        found = [each.result() for each in [pool.submit(find_in_process, keys, ids)] * 8]
    assert all(each == found[0] for each in found)
    store.delete([f"{keys.folder}/{bucket_name(0)}"])
    assert find_in_process(keys, ids) == found[0]


def flip(store: Store, path: str) -> None:
    data = bytearray(store.read_bytes(path))
    data[len(data) // 2] ^= 1
    store.put(path, bytes(data))


def open_all(store: Store, manifest: Manifest) -> None:
    keys = keys_of(store, manifest)
    read_shards(keys)
    KeyIndex(keys).find(hashes_of(["any"]))


def remove(store: Store, path: str) -> None:
    store.delete([path])


@pytest.mark.parametrize("name", [META, UNITS, bucket_name(0)])
@pytest.mark.parametrize(("spoil", "said"), [(flip, "damaged"), (remove, "missing")])
def test_one_flipped_bit_in_any_file_is_noticed_before_a_row_is_carried(
    store: Store, spoil: Callable[[Store, str], None], said: str, name: str
):
    manifest = publish_rows(store, rows=ROWS)
    spoil(store, f"{manifest.keys['folder']}/{name}")
    with pytest.raises(NoKeys, match=f"version 1 of {DAY}.*{said}"):
        open_all(store, manifest)
    with pytest.raises(PipelineError, match=f"1 of .* checks: keys: version 1 .*{said}"):
        verify(store)
    # A version without keys is a version all the same.
    publish_rows(store, rows=dataclasses.replace(ROWS, edition=2))
    back = rollback(store, LAYOUT, "r", keep_versions=2)
    assert (back.keys == {}) == (name == META or spoil is remove)


def rewrite_meta(store: Store, manifest: Manifest, **changed: object) -> Manifest:
    """The manifest of a version whose meta.json says something else."""
    path = f"{manifest.keys['folder']}/{META}"
    data = json.dumps({**json.loads(store.read_bytes(path)), **changed}).encode()
    store.put(path, data)
    keys = {**manifest.keys, "sha256": hashlib.sha256(data).hexdigest()}
    return dataclasses.replace(manifest, keys=keys)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"format": 2}, "written by a newer version"),
        ({"hash": "xxh3-128"}, "written by a newer version"),
        ({"part_rows": [1, 2]}, "of other parts"),
        ({"more": True}, ""),
    ],
)
def test_keys_that_this_version_of_the_pipeline_cannot_trust_are_none(
    store: Store, changed: dict[str, object], said: str
):
    manifest = rewrite_meta(store, publish_rows(store, rows=ROWS), **changed)
    if not said:
        assert read_shards(keys_of(store, manifest))
        return
    with pytest.raises(NoKeys, match=said):
        keys_of(store, manifest)


def test_a_version_of_before_keys_has_none(store: Store):
    manifest = publish_rows(store, rows=dataclasses.replace(ROWS, partition_columns=("label",)))
    with pytest.raises(NoKeys, match=f"version 1 of {DAY} has no keys"):
        keys_of(store, manifest)
    verify(store)


def test_keys_go_when_their_version_leaves_the_history(usual_store: Store):
    made = [
        publish_rows(usual_store, rows=Rows(edition), keep_versions=1) for edition in range(1, 4)
    ]
    assert key_folders(usual_store) == {m.keys["folder"] for m in made[1:]}
    for manifest in made[1:]:
        assert read_shards(keys_of(usual_store, manifest))


def test_pinned_versions_stay_with_their_keys_until_the_pins_go(usual_store: Store):
    store = usual_store
    first, second = (publish_rows(store, rows=Rows(e), keep_versions=1) for e in (1, 2))
    for manifest in (first, second):
        pin(store, LAYOUT, manifest.number, manifest.token, "run-1")
        pin(store, LAYOUT, manifest.number, manifest.token, "run-2")
    assert pinned(store, LAYOUT) == {1, 2}
    last = [publish_rows(store, rows=Rows(edition), keep_versions=0) for edition in (3, 4, 5)][-1]
    collect_garbage(store, LAYOUT, grace_s=3600.0)
    assert history_numbers(store, LAYOUT) == [1, 2]
    kept = {manifest.keys["folder"] for manifest in (first, second, last)}
    assert key_folders(store) == kept
    for manifest in (first, second):
        assert read_shards(keys_of(store, manifest))
        for part in manifest.all_parts:
            store.read_bytes(f"{LAYOUT.history(manifest.number)}/{LAYOUT.inside(part.path)}")
    verify(store)
    unpin(store, LAYOUT, 1, "run-1")
    unpin(store, LAYOUT, 2, "run-1")
    unpin(store, LAYOUT, 2, "run-2")
    repair(store, LAYOUT, 0)
    assert history_numbers(store, LAYOUT) == [1]
    assert key_folders(store) == {first.keys["folder"], last.keys["folder"]}


def test_a_pin_of_a_killed_run_goes_with_the_garbage(store: Store, tmp_path: Path):
    first = publish_rows(store, rows=Rows(1), keep_versions=1)
    for by in ("killed", "at-work"):
        pin(store, LAYOUT, first.number, first.token, by)
    age_files(tmp_path / "out", [f"{LAYOUT.pins}/0000000001-killed.json"], age_s=100.0)
    assert collect_garbage(store, LAYOUT, grace_s=50.0).num_files == 1
    assert [file.path for file in store.list_files(LAYOUT.pins)] == [
        f"{LAYOUT.pins}/0000000001-at-work.json"
    ]
    store.put(f"{LAYOUT.pins}/0000000099-of-no-version.json", b"{}")
    publish_rows(store, rows=Rows(2), keep_versions=0)
    assert history_numbers(store, LAYOUT) == [1]


def test_a_rollback_gives_the_keys_of_the_version_that_it_restores(any_store: Store):
    store = any_store
    first = publish_rows(store, rows=ROWS)
    publish_rows(store, rows=dataclasses.replace(ROWS, edition=2, fail_every=0))
    back = rollback(store, LAYOUT, "r", keep_versions=2)
    verify(store)
    assert back.keys["sha256"] == first.keys["sha256"]
    assert back.keys["folder"] not in ("", first.keys["folder"])
    assert read_shards(keys_of(store, back)) == read_shards(keys_of(store, first))
    assert [part.row_id_hash for part in back.parts] == [p.row_id_hash for p in first.parts]
    publish_rows(store, rows=Rows(3), keep_versions=1)
    assert read_shards(keys_of(store, back))


def crash_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(failpoints, "_reached", Counter())
    monkeypatch.setenv(FAILPOINT, f"{name}:raise")


@pytest.mark.parametrize(
    "step",
    ["keys_laid", "keys_bucket", "keys_units", "keys_written", "before_log", "retired", "trimmed"],
)
def test_after_a_crash_at_any_step_the_next_run_leaves_the_keys_of_its_version_alone(
    usual_store: Store, monkeypatch: pytest.MonkeyPatch, step: str
):
    store = usual_store
    monkeypatch.setattr("pipeline.commit.keys.row_keys.BUCKET_ROWS", 5)
    first = publish_rows(store, rows=ROWS, keep_versions=0)
    again = partial(publish_rows, store, rows=dataclasses.replace(ROWS, edition=2), keep_versions=0)
    with monkeypatch.context() as patch:
        crash_at(patch, step)
        with pytest.raises(RuntimeError, match=step):
            again()
    if step in ("retired", "trimmed"):
        repair(store, LAYOUT, 0)
    else:
        assert read_shards(keys_of(store, first))
    second = again()
    assert key_folders(store) == {second.keys["folder"]}
    assert keys_of(store, second).num_buckets == 4
    verify(store)
    collect_garbage(store, LAYOUT, grace_s=LONG_AGO_S)
    assert store.list_files(f"{LAYOUT.control}/staging") == []
    verify(store)


def test_keys_of_an_attempt_that_may_yet_win_wait_for_the_garbage(store: Store):
    first = publish_rows(store, rows=Rows(1))
    prepared, _ = prepare_version(store, LAYOUT, Rows(2), 2, "suspended")
    repair(store, LAYOUT, 2)
    collect_garbage(store, LAYOUT, grace_s=3600.0)
    assert key_folders(store) == {first.keys["folder"], prepared.keys["folder"]}
    collect_garbage(store, LAYOUT, grace_s=LONG_AGO_S)
    assert key_folders(store) == {first.keys["folder"]}


def test_keys_of_a_partition_that_was_never_published_go_with_the_garbage(store: Store):
    prepared, _ = prepare_version(store, LAYOUT, ROWS, 1, "killed")
    collect_garbage(store, LAYOUT, grace_s=3600.0)
    assert key_folders(store) == {prepared.keys["folder"]}
    collect_garbage(store, LAYOUT, grace_s=LONG_AGO_S)
    assert store.list_files(f"{LAYOUT.control}/keys") == []


def test_the_keys_of_the_attempt_that_loses_go_with_its_parts(any_store: Store):
    store = any_store
    publish_rows(store, rows=Rows(1))
    prepared = [
        prepare_version(store, LAYOUT, Rows(edition), 2, f"run-{edition}") for edition in (2, 3)
    ]
    (winner, _), (loser, _) = prepared
    placed = commit(store, LAYOUT, *prepared[0])
    with pytest.raises(PublishConflict):
        commit(store, LAYOUT, *prepared[1])
    assert winner.keys["folder"] in key_folders(store)
    assert loser.keys["folder"] not in key_folders(store)
    sync_published_folder(store, LAYOUT, placed, 2)
    verify(store)
