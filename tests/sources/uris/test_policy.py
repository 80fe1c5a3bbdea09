"""What a job allows its rows to name, and who gets its credentials."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import JobError
from pipeline.core.failures import Reason, RowError
from pipeline.job.source import Source
from pipeline.sources.uris.policy import (
    FetchPolicy,
    is_allowed,
    policy_of,
    published_uri,
    rooted,
    shown_uri,
    target_of,
)

OPTIONS = {"key": "k", "secret": "s3cr3t"}


@pytest.mark.parametrize(
    ("root", "roots", "trusted"),
    [
        ("s3://b/in", ["s3://c", "gs://other", "abfs://a/b", "/local"], {"s3://b/in", "s3://c"}),
        ("gs://b/in", ["s3://c", "gs://other", "/local"], {"gs://b/in", "gs://other"}),
        ("/in", ["s3://c", "gs://other", "/local"], {"/in", "/local"}),
    ],
)
def test_credentials_go_to_stores_of_the_kind_that_they_are_for_and_to_no_other(
    root: str, roots: list[str], trusted: set[str]
):
    source = Source(
        uri=root, format="parquet", uri_column="u", uri_roots=tuple(roots), storage_options=OPTIONS
    )
    policy = policy_of(source, root)
    assert {uri for uri, options in policy.roots.items() if options} == trusted
    assert {*policy.roots} == {root, *roots}
    assert all(policy.roots[uri] == OPTIONS for uri in trusted)
    assert "s3cr3t" not in repr(policy)


def test_the_limits_and_hosts_of_a_job_are_those_of_its_policy(tmp_path: Path):
    source = Source(
        uri=str(tmp_path),
        format="parquet",
        uri_column="u",
        uri_base="https://img.example/a/",
        http_hosts=("img.example",),
        private_hosts=("10.0.0.1:8080",),
        max_image_bytes=77,
    )
    policy = policy_of(source, str(tmp_path))
    assert (policy.max_bytes, policy.allow_http) == (77, False)
    assert (policy.http_hosts, policy.private_hosts) == (("img.example",), ("10.0.0.1:8080",))
    assert policy.uri_base == "https://img.example/a/"
    plain = Source(uri=str(tmp_path), format="parquet", uri_column="u", allow_http=True)
    assert policy_of(plain, str(tmp_path)).uri_base == str(tmp_path)
    assert policy_of(plain, str(tmp_path)).allow_http


ROOTS = {"/lake": {}, "/lake/deep": {}, "s3://b/in": {}}
POLICY = FetchPolicy(
    100,
    roots=ROOTS,
    http_hosts=("img.example", "img.example:8443", "[2606:4700::1]", "b\u00fccher.example"),
    private_hosts=("store.internal:9000", "10.0.0.1:80"),
    allow_http=True,
)


@pytest.mark.parametrize(
    ("uri", "root", "path"),
    [
        ("/lake", "/lake", ""),
        ("/lake/a.jpg", "/lake", "a.jpg"),
        ("/lake/deep/a.jpg", "/lake/deep", "a.jpg"),
        ("/lake/deeper/a.jpg", "/lake", "deeper/a.jpg"),
        ("/lake/./x/../deep/./a.jpg", "/lake/deep", "a.jpg"),
        ("file:///lake/a.jpg", "/lake", "a.jpg"),
        ("s3://b/in/x/../y", "s3://b/in", "y"),
        ("s3://b/out/../in/y", "s3://b/in", "y"),
    ],
)
def test_a_uri_belongs_to_the_longest_root_that_it_lies_below(uri: str, root: str, path: str):
    assert rooted(uri, POLICY) == (root, path)


def test_below_the_root_of_all_files_is_every_file():
    assert rooted("/etc/x", FetchPolicy(1, roots={"/": {}})) == ("/", "etc/x")


@pytest.mark.parametrize(
    ("url", "authority", "port", "path"),
    [
        ("http://IMG.example./a b?q=\u00e4/?#x", "img.example", 80, "/a%20b?q=%C3%A4/?"),
        ("https://img.example", "img.example", 443, "/"),
        ("http://img.example?x=1", "img.example", 80, "/?x=1"),
        ("http://img.example/x HTTP/1.1", "img.example", 80, "/x%20HTTP/1.1"),
        ("http://img.example:443/%2F", "img.example:443", 443, "/%2F"),
        ("https://img.example:8443/", "img.example:8443", 8443, "/"),
        ("https://[2606:4700:0::1]/", "[2606:4700::1]", 443, "/"),
        ("https://B\u00dcCHER.example/a", "xn--bcher-kva.example", 443, "/a"),
        ("https://xn--bcher-kva.example/a", "xn--bcher-kva.example", 443, "/a"),
        ("http://10.0.0.1/", "10.0.0.1", 80, "/"),
    ],
)
def test_an_allowed_url_has_one_spelling(url: str, authority: str, port: int, path: str):
    target = target_of(url, POLICY)
    assert (target.authority, target.port, target.path) == (authority, port, path)
    assert target.scheme == url.partition(":")[0]
    assert authority.removeprefix("[").startswith(target.host)
    assert target.may_be_private == (target.host == "10.0.0.1")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://img.example/\\x", "malformed$"),
        ("http://img.example/\x00", "malformed$"),
        ("http://img.example:99999/", "malformed host or port"),
        ("http://img.exa$mple/", "malformed host or port"),
        ("ftp://img.example/", "ftp:// is not allowed here"),
        ("http://me@img.example/", "a user or password does not belong in a URI"),
        ("http://img.example:81/", "img.example:81 is not among the allowed hosts"),
        ("http://store.internal/", "store.internal:80 is not among the allowed hosts"),
        ("https://10.0.0.1/", "10.0.0.1:443 is not among the allowed hosts"),
    ],
)
def test_a_url_that_is_not_allowed_is_forbidden_and_says_why(url: str, words: str):
    with pytest.raises(RowError, match=words) as caught:
        target_of(url, POLICY)
    assert caught.value.reason == Reason.FORBIDDEN_URI


def test_no_redirect_leads_from_https_to_http():
    assert target_of("http://img.example/", POLICY, "http").scheme == "http"
    assert target_of("https://img.example/", POLICY, "http").scheme == "https"
    for policy, came_by in ((POLICY, "https"), (replace(POLICY, allow_http=False), "")):
        with pytest.raises(RowError, match="http is not allowed here, only https"):
            target_of("http://img.example/", policy, came_by)


@pytest.mark.parametrize(
    ("uri", "published"),
    [
        ("s3://b/x.jpg", "s3://b/x.jpg"),
        ("https://h/x?Signature=s#f", "https://h/x"),
        ("https://h/x#f?x", "https://h/x"),
        ("https://me:p@ss@h/x", "https://***@h/x"),
        ("//me:pass@h/x", "//..."),
        ("/a/b?c", "/a/b?c"),
        ("a.jpg", "a.jpg"),
        ("a.jpg?sig=s", "a.jpg"),
        ("./a:b.jpg#token=s", "./a:b.jpg"),
        ("a#1.jpg", "a#1.jpg"),
        ("data:image/png;base64,c2VjcmV0", "data:..."),
        ("s3://b/two  spaces\n.jpg", "s3://b/two  spaces\n.jpg"),
    ],
)
def test_a_uri_is_published_without_what_may_be_a_credential(uri: str, published: str):
    assert published_uri(uri) == published
    assert shown_uri(uri) == published
    assert shown_uri("/" + "x" * 900) == "/" + "x" * 199


PUBLIC = [
    *("93.184.216.34", "2606:4700::1111", "64:ff9b::5db8:d822", "::ffff:93.184.216.34"),
]
FOR_PRIVATE_HOSTS = [
    *("10.1.2.3", "127.0.0.1", "127.8.8.8", "172.16.0.1", "192.168.1.1", "100.64.0.1"),
    *("fc00::1", "::1", "::ffff:10.1.2.3", "::ffff:127.0.0.1", "64:ff9b::a01:203"),
    "64:ff9b::7f00:1",
]
FOR_NONE = [
    *("fd00:ec2::254", "100.100.100.200", "169.254.169.254", "168.63.129.16", "0.0.0.0"),
    *("fe80::1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "224.0.0.1", "2002:808:808::1"),
    *("64:ff9b:1::808:808", "192.0.0.192", "192.0.2.1", "192.88.99.1", "198.18.0.1"),
    *("198.51.100.1", "203.0.113.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "::"),
    *("::127.0.0.1", "2001::1", "2001:db8::1", "2002:7f00:1::1", "3fff::1", "5f00::1"),
    *("fe80::1%lo", "fec0::1", "ff02::1"),
]


@pytest.mark.parametrize("address", [*PUBLIC, *FOR_PRIVATE_HOSTS, *FOR_NONE])
def test_an_address_is_for_anyone_for_private_hosts_or_for_none(address: str):
    parsed = ipaddress.ip_address(address)
    assert is_allowed(parsed, may_be_private=False) == (address in PUBLIC)
    assert is_allowed(parsed, may_be_private=True) == (address not in FOR_NONE)


def test_hosts_are_kept_in_their_one_spelling_and_limits_are_above_0():
    policy = FetchPolicy(1, http_hosts=("B\u00dccher.Example.", "[::0:1]:80"), threads=1, tries=1)
    assert policy.http_hosts == ("xn--bcher-kva.example", "[::1]:80")
    for name in ("max_bytes", "threads", "tries", "try_timeout_s", "timeout_s"):
        for wrong in (0, -1):
            with pytest.raises(JobError, match=f"{name}: {wrong} is not above 0"):
                FetchPolicy(**{"max_bytes": 1, name: wrong})


@pytest.mark.parametrize(
    ("field", "entry", "words"),
    [
        ("http_hosts", "h/x", "http_hosts: expected host or host:port and nothing else, not 'h/x'"),
        ("http_hosts", "me:pass@h", "and nothing else, not 'h'"),
        ("http_hosts", "h h", "nothing else"),
        ("http_hosts", "h?x", "nothing else"),
        ("http_hosts", "h#x", "nothing else"),
        ("http_hosts", "h\\x", "nothing else"),
        ("http_hosts", "https://h", "nothing else"),
        ("http_hosts", "*.example", "nothing else"),
        ("http_hosts", "", "nothing else"),
        ("http_hosts", "2130706433", "nothing else"),
        ("http_hosts", "h:x", "nothing else"),
        ("private_hosts", "h", "private_hosts: expected host:port and nothing else, not 'h'"),
    ],
)
def test_an_entry_that_is_more_or_less_than_a_host_is_refused(field: str, entry: str, words: str):
    with pytest.raises(JobError) as caught:
        FetchPolicy(1, **{field: (entry,)})  # type: ignore[arg-type]
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("base", "kept"),
    [
        ("HTTP://img.example/x", "HTTP://img.example/x/"),
        ("https://img.example/x/", "https://img.example/x/"),
        ("/lake/deep/", "/lake/deep"),
        ("s3://b/in/", "s3://b/in"),
    ],
)
def test_a_base_is_itself_allowed(base: str, kept: str):
    assert replace(POLICY, uri_base=base).uri_base == kept
    with pytest.raises(JobError, match=r"^uri_base: .*not (below any root|among the allowed)"):
        FetchPolicy(1, allow_http=True, uri_base=base)


@pytest.mark.parametrize(
    "fields",
    [
        {"roots": {"ftp://img.example": {}}},
        {"roots": {"s3://key:s3cr3t@lake/x": {}}},
        {"http_hosts": ("me:s3cr3t@h",)},
        {"uri_base": "https://me:s3cr3t@img.example/", "http_hosts": ("img.example",)},
    ],
)
def test_a_policy_is_refused_without_showing_a_secret(fields: dict[str, Any]):
    with pytest.raises(JobError) as caught:
        FetchPolicy(1, **fields)
    assert "s3cr3t" not in str(caught.value)
