"""A listing finds every file once, whatever the names, with few requests."""

from __future__ import annotations

import bisect
import dataclasses
import datetime as dt
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.servers.object_stores import LocalServer

from pipeline.core.errors import InfraError
from pipeline.job.source import Source
from pipeline.sources.listing.inputs import list_inputs
from pipeline.sources.units import Extent
from pipeline.storage import listing
from pipeline.storage.interface import Page, StoredFile
from pipeline.storage.listing import collect, folder_names, list_folders, list_in_parallel
from pipeline.storage.object_store import ObjectStore, object_store
from pipeline.storage.protocols import OBJECT_PROTOCOLS, azure, gcs, s3
from pipeline.storage.store import Store
from pipeline.storage.uris import root_path

PAGE_KEYS = 5
# Empty ones too: `a//b` and `/b` are keys of their own, beside `a/b`.
names = st.text("ab", min_size=0, max_size=2)
keys = st.lists(names, min_size=1, max_size=4).map("/".join).filter(lambda k: k[-1:] not in "/")


class Bucket:
    """Sorted keys, listed as object stores do it."""

    def __init__(self, keys: set[str]) -> None:
        self.keys = sorted(keys)
        self.num_requests = 0
        self._lock = threading.Lock()

    def fetch(self, folder: str, delimited: bool, token: str | None) -> Page:
        with self._lock:
            self.num_requests += 1
        prefix = f"{folder}/" if folder and not folder.endswith("/") else folder
        entries: list[str] = []
        for key in self.keys[bisect.bisect_left(self.keys, token or prefix) :]:
            if not key.startswith(prefix):
                continue
            rest = key.removeprefix(prefix)
            entry = prefix + rest.partition("/")[0] + "/" if delimited and "/" in rest else key
            if entry in entries or (token or "") > entry:
                continue
            if len(entries) == PAGE_KEYS:
                return self._page(entries, entry)
            entries.append(entry)
        return self._page(entries, None)

    def _page(self, entries: list[str], token: str | None) -> Page:
        files = [StoredFile(entry, 1, "v", None) for entry in entries if not entry.endswith("/")]
        return Page(files, [entry for entry in entries if entry.endswith("/")], token)


def paths(pages: Iterator[list[StoredFile]]) -> list[str]:
    return [file.path for file in collect(pages, "url")]


@given(st.sets(keys, max_size=80))
def test_every_file_is_found_once_whatever_the_names(keys: set[str]) -> None:
    bucket = Bucket(keys)
    assert paths(list_in_parallel(bucket.fetch, "")) == bucket.keys
    below = [key for key in bucket.keys if key.startswith("a/")]
    assert paths(list_in_parallel(bucket.fetch, "a")) == below


@given(st.sets(keys, max_size=80))
def test_folders_are_named_without_looking_into_them(keys: set[str]) -> None:
    bucket = Bucket(keys)
    assert folder_names(bucket.fetch, "") == sorted({k.split("/")[0] for k in keys if "/" in k})
    entries = {key.split("/")[0] + "/" * ("/" in key) for key in keys}
    assert bucket.num_requests <= 1 + len(entries) // PAGE_KEYS


@pytest.mark.parametrize(
    "name",
    ["{0:06d}", "only/folder/{0:06d}", "{1:02d}/{0:06d}", "{0:06d}/x.jpg", "{2}/{1:02d}/{0:06d}"],
    ids=["flat", "one deep folder", "some folders", "a folder a file", "folders in folders"],
)
def test_requests_grow_no_faster_than_the_files(name: str) -> None:
    requests = {}
    for num_files in (500, 1000, 2000):
        bucket = Bucket({name.format(i, i % 20, i % 3) for i in range(num_files)})
        assert len(paths(list_in_parallel(bucket.fetch, ""))) == num_files
        requests[num_files] = bucket.num_requests
        assert bucket.num_requests <= num_files / PAGE_KEYS * 1.2 + 3 * 64
    assert requests[2000] - requests[1000] <= 2.2 * (requests[1000] - requests[500])


def test_a_small_folder_is_one_request_and_no_thread() -> None:
    bucket = Bucket({"a/1", "a/2", "b/1"})
    threads = threading.active_count()
    assert paths(list_in_parallel(bucket.fetch, "a")) == ["a/1", "a/2"]
    assert bucket.num_requests == 1
    assert threading.active_count() == threads


def test_trouble_in_any_folder_is_raised() -> None:
    bucket = Bucket({f"{folder}/{i}" for folder in "abc" for i in range(20)})

    def fetch(folder: str, delimited: bool, token: str | None) -> Page:
        if folder == "b/" and token:
            raise InfraError("b is ill")
        return bucket.fetch(folder, delimited, token)

    with pytest.raises(InfraError, match="b is ill"):
        paths(list_in_parallel(fetch, ""))


def test_a_long_listing_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listing, "_PROGRESS_S", 0.0)
    caplog.set_level(logging.INFO)
    bucket = Bucket({str(number) for number in range(12)})
    assert len(paths(list_in_parallel(bucket.fetch, ""))) == 12
    assert "listing url: 12 files so far" in caplog.text


def set_page_keys(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    for protocol in (azure, gcs, s3):
        monkeypatch.setattr(protocol, "PAGE_KEYS", number)


def test_real_servers_page_as_they_should(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = server.store()
    set_page_keys(monkeypatch, 7)
    expected = sorted(
        [f"many/{i:03d}" for i in range(40)]
        + [f"f {n}/+{i}/x.jpg" for n in range(3) for i in range(8)]
        + ["top", "f 1/side"]
    )
    for path in expected:
        store.put(path, path.encode())
    assert [file.path for file in store.list_files()] == expected
    assert [file.path for file in store.list_files("f 1")] == [
        path for path in expected if path.startswith("f 1/")
    ]
    described = {file.path: file for file in store.list_files()}
    assert described["many/007"] == store.stat("many/007")


@example({f"{folder}{number}" for folder in ("a//", "a/b/", "c/") for number in range(9)})
@given(st.sets(keys, max_size=80))
def test_a_folder_without_a_name_is_one_of_its_own(keys: set[str]) -> None:
    """Below `in//` lies something else than below `in/`."""
    bucket = Bucket(keys)

    def page(_fs: object, name: str, prefix: str, delimited: bool, token: str | None) -> Page:
        listed = bucket.fetch(prefix, delimited, token)
        files = [dataclasses.replace(f, path=f"{name}/{f.path}") for f in listed.files]
        return Page(files, listed.prefixes, listed.next_token)

    facts = dataclasses.replace(OBJECT_PROTOCOLS["s3"], list_page=page)
    listed = paths(list_in_parallel(ObjectStore(None, facts).list_page, "lake"))
    assert listed == [f"lake/{key}" for key in bucket.keys]


# SeaweedFS has no keys with two slashes.
@pytest.mark.parametrize("protocol", ["gcs", "azure"])
def test_odd_keys_are_listed_once_and_cost_at_most_themselves(
    protocol: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    server: LocalServer = request.getfixturevalue(protocol)
    set_page_keys(monkeypatch, 3)
    store = server.store()
    names = [f"{folder}{number}.png" for folder in ("a/", "b//", "") for number in range(5)]
    for name in names:
        store.put(name, name.encode())
    put = raw_writer(store)
    for number in range(5):
        put(f"/{number}.png")
    put("folder.png/")
    source = Source(uri=store.uri, format="images", storage_options=dict(store.storage_options))
    inputs = list_inputs(source, max_extent_rows=10)
    assert [shard.path for shard in inputs.shards] == sorted(names)
    read = store.read_many([shard.path for shard in inputs.shards])
    assert read == {name: name.encode() for name in names}
    assert inputs.skipped.files == {"bad_key": 6}
    assert inputs.skipped.first["bad_key"] == tuple(f"/{number}.png" for number in range(5))


def raw_writer(store: Store) -> Callable[[str], None]:
    """Write objects whose keys a `Store` refuses."""
    objects = object_store(store.uri, store.storage_options)
    return lambda name: objects.put(f"{root_path(store.uri)}/{name}", b"x")


def test_what_is_planned_carries_no_dictionary_a_file() -> None:
    for value in (StoredFile("a", 1, "v", None), Extent("a", 1, "v", 0, 1, 1.0)):
        assert not hasattr(value, "__dict__")


def test_the_store_hands_out_paths_below_its_root(every_store: Store) -> None:
    inner = Store(every_store.url("a/b"), every_store.storage_options)
    inner.put("c/d", b"x")
    every_store.put("a/bb", b"x")
    assert [file.path for file in inner.list_files()] == ["c/d"]
    assert [file.path for file in every_store.list_files()] == ["a/b/c/d", "a/bb"]


# ---------------------------------------------------------------------------- many small folders

days = st.sampled_from([f"d={n}" for n in (1, 10, 2, 23)])
folders = st.tuples(days, st.sampled_from(["lease", "log"])).map("/".join)
keys_of_days = st.tuples(
    days, st.sampled_from(["keys", "lease", "leases", "log", "staging"]), st.sampled_from("abcde")
).map("/".join)


def after(keys: list[str], key: str) -> Page:
    """List sorted keys as object stores do it."""
    begin = bisect.bisect_right(keys, key)
    files = [StoredFile(key, 1, "v", None) for key in keys[begin : begin + PAGE_KEYS]]
    return Page(files, next_token=files[-1].path if begin + PAGE_KEYS < len(keys) else None)


@example(  # the first page ends inside the second folder
    {"d=1/lease/a", *(f"d=1/log/{name}" for name in "abcdefg")}, {"d=1/lease", "d=1/log"}
)
@given(st.sets(keys_of_days), st.sets(folders))
def test_all_files_of_the_folders_and_no_others(keys: set[str], folders: set[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "_LEAST_FOLDERS", 2)
        pages = list_folders(lambda key: after(sorted(keys), key), sorted(folders))
        paths = [file.path for page in pages for file in page]
    assert sorted(paths) == sorted(key for key in keys if key.rpartition("/")[0] in folders)


def test_every_kind_of_store_lists_the_same_and_jumps_over_what_is_large(
    every_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_page_keys(monkeypatch, 10)
    small = [
        f"c/d={n}/{folder}/{i}" for n in (1, 2, 3) for folder in ("lease", "log") for i in (1, 2)
    ]
    large = [f"c/d=2/{folder}/{i:03d}" for folder in ("keys", "staging") for i in range(60)]
    for path in [*small, *large, "c/d=1/current.json", "c/d=30/log/1"]:
        every_store.put(path, b"x")
    requests, list_after = list[str](), ObjectStore.list_after

    def counted(store: ObjectStore, folder: str, path: str) -> Page:
        requests.append(path)
        return list_after(store, folder, path)

    monkeypatch.setattr(ObjectStore, "list_after", counted)
    wanted = [f"c/d={n}/{folder}" for n in (1, 2, 3, 4) for folder in ("lease", "log")]
    files = every_store.list_small_folders("c", wanted)
    assert [file.path for file in files] == sorted(small)
    assert files[0] == every_store.stat(small[0])
    assert len(requests) <= 4


def test_names_that_servers_sort_in_two_ways_are_listed_one_by_one(every_store: Store) -> None:
    paths = [f"c/{name}/log/1" for name in ("d=2026-11", "d=2026-11-24", "d=2026-11.5")]
    for path in paths:
        every_store.put(path, b"x")
    files = every_store.list_small_folders("c", [path.rpartition("/")[0] for path in paths])
    assert sorted(file.path for file in files) == sorted(paths)
    assert every_store.list_small_folders("c", []) == []


class Answers:
    """A file system that gives one answer after the other to the requests of its protocol."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self._answers = [*answers]

    def call(self, *_: object, **__: object) -> dict[str, Any]:
        return self._answers.pop(0)

    call_s3 = call


@pytest.mark.parametrize("list_after", [gcs._list_gcs_after, s3._list_s3_after])
def test_a_page_without_files_is_not_the_last_one(list_after: Any) -> None:
    day = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)
    item = {"name": "c/2", "size": "1", "generation": "1", "updated": day.isoformat()}
    content = {"Key": "c/2", "Size": 1, "ETag": "v", "LastModified": day}
    more = {"nextPageToken": "t", "NextContinuationToken": "t"}
    fs = Answers(more, {"items": [item], "Contents": [content], **more})
    page = list_after(fs, "b", "c/", "c/1")
    assert ([file.path for file in page.files], page.next_token) == (["b/c/2"], "c/2")
    assert list_after(Answers({}), "b", "c/", "c/2").files == []
