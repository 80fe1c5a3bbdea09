"""What a job allows its rows to name, and who gets its credentials."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.job.source import Source
from pipeline.sources.uris.policy import policy_of

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
