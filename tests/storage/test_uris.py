"""A URI of a store has one form, and names one path and one account."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.errors import JobError
from pipeline.storage.uris import join, normalise, options_of, root_path

LAKE = "abfss://lake@acc1.dfs.core.windows.net"


@pytest.mark.parametrize(
    ("uri", "form"),
    [
        ("s3://b", "s3://b"),
        ("gs://b/x/y//", "gs://b/x/y"),
        ("az:///b/x", "az://b/x"),
        ("s3://b/x@y", "s3://b/x@y"),
        ("s3://b/x://y", "s3://b/x://y"),
        ("s3://b/a..b/...", "s3://b/a..b/..."),
        ("file:///a/../b/", "/b"),
        ("/a/./b/../c/", "/a/c"),
        ("/s3:/b", "/s3:/b"),
        (f"{LAKE}/a/", f"{LAKE}/a"),
        ("az://lake@acc1.blob.core.windows.net/a", "az://lake@acc1.blob.core.windows.net/a"),
    ],
)
def test_a_uri_has_one_form(uri: str, form: str):
    assert normalise(uri) == normalise(form) == form


def test_a_local_path_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert normalise("x/../y") == str(tmp_path / "y")
    assert normalise("~/y") == "/home/me/y"
    assert normalise("x/s3:/y") == str(tmp_path / "x/s3:/y")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3:/b/x", "^s3:/b/x: not a URI; expected two slashes"),
        ("file:/x", "^file:/x: not a URI"),
        ("file://x/y", "^file://x/y: expected three slashes"),
        ("ftp://h/x", "^ftp://: not supported; expected a local path or s3://, gs://, az://"),
        ("s3://key:pass@b/x", "^s3://: credentials do not belong in a URI"),
        (f"s3{LAKE[5:]}/a", "^s3://: credentials"),
        ("az://key:pass@acc1.dfs.core.windows.net", "^az://: credentials"),
        ("s3://", "^s3://: expected s3://bucket/prefix"),
        ("gs:///", "^gs:///: expected gs://bucket/prefix"),
        ("s3://b/./x", r"^s3://b/\./x: expected .* without '\.' and"),
        ("s3://b/x/..", r"^s3://b/x/\.\.: expected"),
        ("s3://../x", "expected s3"),
    ],
)
def test_what_is_no_uri_of_a_known_store_is_refused(uri: str, words: str):
    with pytest.raises(JobError, match=words):
        normalise(uri)


@pytest.mark.parametrize(
    ("root", "path", "joined"),
    [
        ("s3://b", "x/y", "s3://b/x/y"),
        ("s3://b/", "x/", "s3://b/x"),
        ("/a//", "", "/a"),
        ("/", "etc", "/etc"),
        ("/", "", "/"),
    ],
)
def test_what_lies_below_a_root_has_one_slash_before_it(root: str, path: str, joined: str):
    assert join(root, path) == joined


@pytest.mark.parametrize(
    ("uri", "path", "options"),
    [
        ("/a/b@c", "/a/b@c", {}),
        ("s3://b", "b", {}),
        ("s3://b/x@y/z", "b/x@y/z", {}),
        ("s3://b/x://y", "b/x://y", {}),
        ("az://b/lake@acc1.dfs.core.windows.net", "b/lake@acc1.dfs.core.windows.net", {}),
        (
            f"{LAKE}/a/b",
            "lake/a/b",
            {"account_name": "acc1", "account_host": "acc1.blob.core.windows.net"},
        ),
        (
            "abfs://$web@acc1.blob.core.chinacloudapi.cn",
            "$web",
            {"account_name": "acc1", "account_host": "acc1.blob.core.chinacloudapi.cn"},
        ),
    ],
)
def test_a_uri_means_a_path_and_an_account(uri: str, path: str, options: dict[str, str]):
    assert (root_path(uri), options_of(uri)) == (path, options)
