"""Many small folders are listed in few requests, whatever lies between them."""

from __future__ import annotations

import bisect
import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage import listing
from pipeline.storage.interface import Page, StoredFile
from pipeline.storage.listing import list_folders
from pipeline.storage.object_store import ObjectStore
from pipeline.storage.protocols import gcs, s3
from pipeline.storage.store import Store

PAGE_KEYS = 5
names = st.sampled_from([f"d={n}" for n in (1, 10, 2, 23)])
folders = st.tuples(names, st.sampled_from(["lease", "log"])).map("/".join)
keys = st.tuples(
    names, st.sampled_from(["keys", "lease", "leases", "log", "staging"]), st.sampled_from("abcde")
).map("/".join)


def after(keys: list[str], key: str) -> Page:
    """List sorted keys as object stores do it."""
    begin = bisect.bisect_right(keys, key)
    found = [StoredFile(each, 1, "v", None) for each in keys[begin : begin + PAGE_KEYS]]
    return Page(found, next_token=found[-1].path if begin + PAGE_KEYS < len(keys) else None)


@given(st.sets(keys), st.sets(folders))
def test_all_files_of_the_folders_and_no_others(keys: set[str], folders: set[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "_LEAST_FOLDERS", 2)
        pages = list_folders(lambda key: after(sorted(keys), key), sorted(folders))
        found = [file.path for page in pages for file in page]
    assert sorted(found) == sorted(key for key in keys if key.rpartition("/")[0] in folders)


def test_every_kind_of_store_lists_the_same_and_jumps_over_what_is_large(
    every_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for protocol in (gcs, s3):
        monkeypatch.setattr(protocol, "PAGE_KEYS", 10)
    small = [f"c/d={n}/{kind}/{i}" for n in (1, 2, 3) for kind in ("lease", "log") for i in (1, 2)]
    large = [f"c/d=2/{kind}/{i:03d}" for kind in ("keys", "staging") for i in range(60)]
    for path in [*small, *large, "c/d=1/current.json", "c/d=30/log/1"]:
        every_store.put(path, b"x")
    requests, list_after = list[str](), ObjectStore.list_after

    def counted(store: ObjectStore, folder: str, path: str) -> Page:
        requests.append(path)
        return list_after(store, folder, path)

    monkeypatch.setattr(ObjectStore, "list_after", counted)
    wanted = [f"c/d={n}/{kind}" for n in (1, 2, 3, 4) for kind in ("lease", "log")]
    found = every_store.list_small_folders("c", wanted)
    assert [file.path for file in found] == sorted(small)
    assert found[0] == every_store.stat(small[0])
    assert len(requests) <= 4


def test_names_that_servers_sort_in_two_ways_are_listed_one_by_one(every_store: Store) -> None:
    paths = [f"c/{name}/log/1" for name in ("d=2026-11", "d=2026-11-24", "d=2026-11.5")]
    for path in paths:
        every_store.put(path, b"x")
    found = every_store.list_small_folders("c", [path.rpartition("/")[0] for path in paths])
    assert sorted(file.path for file in found) == sorted(paths)
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
