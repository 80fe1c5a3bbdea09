"""No message shows a secret of the storage options, however deep it stands in them."""

from __future__ import annotations

import pytest

from pipeline.core.errors import InfraError, JobError, PipelineError
from pipeline.storage.errors import classify, options_named, secret_values, storage_errors

NESTED = {
    "anon": False,
    "client_kwargs": {
        "endpoint_url": "https://store.example",
        "aws_secret_access_key": "s3cr3t-1",
        "deeper": {"token": "s3cr3t-2"},
    },
    "config_kwargs": {"proxies": {"https": "https://me:s3cr3t-3@proxy.example"}},
    "secret": "s3cr3t-4",
}


SECRETS = ("s3cr3t-1", "s3cr3t-2", "https://me:s3cr3t-3@proxy.example", "s3cr3t-4")


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_at_any_depth_is_in_no_error_of_a_store(secret: str):
    assert secret in secret_values(NESTED)
    with (
        pytest.raises(PipelineError) as caught,
        storage_errors("cannot read s3://b/x", secret_values(NESTED)),
    ):
        raise OSError(f"refused {secret}, as {secret!r}")
    message = str(caught.value)
    assert "s3cr3t" not in message
    assert message.startswith("cannot read s3://b/x")
    assert "***" in message


def test_the_parts_of_a_connection_string_are_secrets_too():
    text = "DefaultEndpointsProtocol=https;AccountName=me;AccountKey=a2V5MQ==;EndpointSuffix=x"
    found = secret_values({"connection_string": text})
    assert {text, "a2V5MQ=="} <= {*found}
    assert "me" not in found


def test_the_section_whose_options_are_wrong_is_named():
    told = classify(type("NoCredentialsError", (Exception,), {})(), "cannot list s3://b")
    with (
        pytest.raises(JobError, match=r"missing: see sink\.storage_options or the variables"),
        options_named("sink.storage_options"),
    ):
        raise told
    for other in (InfraError("see storage_options"), JobError("no such bucket")):
        with pytest.raises(type(other)) as caught, options_named("sink.storage_options"):
            raise other
        assert caught.value is other
