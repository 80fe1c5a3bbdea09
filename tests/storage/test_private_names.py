"""Without private names of s3fs, gcsfs, adlfs and fsspec, the plain way gives the same."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from gcsfs.core import GCSFileSystem
from support.servers.object_stores import LocalServer

from pipeline.storage.interface import FileExpired
from pipeline.storage.object_store import ObjectStore, object_store
from pipeline.storage.protocols.azure import switch_off_retries

COROUTINES = {"s3": ["_call_s3"], "gcs": ["_cat_file", "_info"], "azure": ["_info"]}
PROTOCOLS = ["s3", "gcs", "azure"]


class Without:
    """A real file system, without some of its names."""

    def __init__(self, fs: Any, *hidden: str) -> None:
        self._fs, self._hidden = fs, hidden

    def __getattr__(self, name: str) -> Any:
        if name in self._hidden:
            raise AttributeError(name)
        return getattr(self._fs, name)


def objects_of(server: LocalServer) -> tuple[ObjectStore, dict[str, tuple[str, str]]]:
    """A store with three objects: name -> its path with the bucket, and its version."""
    store = server.store()
    for name in ("a", "b", "c"):
        store.put(name, name.encode())
    objects = object_store(store.uri, store.storage_options)
    root = store.uri.partition("://")[2].partition("@")[0]
    listed = {file.path: file.version for file in store.list_files()}
    return objects, {name: (f"{root}/{name}", listed[name]) for name in listed}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_versions_are_read_without_the_private_coroutines(
    protocol: str, request: pytest.FixtureRequest
) -> None:
    objects, files = objects_of(request.getfixturevalue(protocol))
    hidden = COROUTINES[protocol]
    assert all(hasattr(objects.fs, name) for name in hidden), "no longer the library's name"
    plain = ObjectStore(Without(objects.fs, *hidden), objects.facts)
    paths, versions = zip(*files.values(), strict=True)
    assert plain.read_many(paths, versions) == [b"a", b"b", b"c"]
    objects.put(paths[1], b"new content")
    contents = plain.read_many([*paths, f"{paths[0]}-missing"], [*versions, versions[0]])
    assert (contents[0], contents[2]) == (b"a", b"c")
    assert isinstance(contents[1], FileExpired)
    assert isinstance(contents[3], FileNotFoundError)


def test_azure_works_if_its_retry_policy_has_another_name(
    azure: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    objects, files = objects_of(azure)
    client = objects.fs.service_client
    assert client._config.retry_policy.total_retries == 0, "no longer the library's name"
    client._config.retry_policy.total_retries = 1
    switch_off_retries(Without(client, "_config"))
    assert client._config.retry_policy.total_retries == 1
    assert "retries of the client stay on" in caplog.text
    assert objects.read(files["a"][0]) == b"a"
    switch_off_retries(client)
    assert client._config.retry_policy.total_retries == 0


def test_gcs_works_if_its_request_has_no_retries_to_take_off(
    gcs: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hasattr(GCSFileSystem._request, "__wrapped__"), "no longer the library's name"
    monkeypatch.delattr(GCSFileSystem._request, "__wrapped__")
    store = gcs.store(block_size=2**20)  # options of its own: a file system that is not cached
    assert "_request" not in vars(object_store(store.uri, store.storage_options).fs)
    store.put("a", b"1")
    assert store.read_bytes("a") == b"1"
