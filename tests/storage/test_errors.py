"""Errors of stores are classified by code, status, class or number; no message has a secret."""

from __future__ import annotations

import errno

import fsspec
import pytest
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ServiceRequestError
from azure.storage.blob import StorageErrorCode
from botocore.exceptions import ClientError, NoCredentialsError, NoRegionError
from gcsfs.retry import HttpError
from google.auth.exceptions import RefreshError

from pipeline.core.backoff import BadBlockError, TransientError
from pipeline.core.errors import AccessDenied, InfraError, JobError, PipelineError
from pipeline.storage.errors import (
    classify,
    is_conflict,
    is_missing,
    listed_files,
    options_named,
    redact,
    secret_values,
    storage_errors,
    translate,
)
from pipeline.storage.interface import BadBlock, FileExpired

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
    text = "AccountName=me;AccountKey=a2V5MQ==;SharedAccessSignature=sv=1&sig=x;EndpointSuffix=x"
    secrets = secret_values({"connection_string": text})
    assert {text, "a2V5MQ==", "sv=1&sig=x"} <= {*secrets}
    assert "me" not in secrets


def test_nothing_is_no_secret():
    """Every place in a text holds it, so that no message could be read."""
    for text in ("", "AccountName=a;AccountKey=", "AccountKey=;SharedAccessSignature="):
        assert "" not in secret_values({"connection_string": text})


def test_the_section_whose_options_are_wrong_is_named():
    error = classify(type("NoCredentialsError", (Exception,), {})(), "cannot list s3://b")
    with (
        pytest.raises(JobError, match=r"missing: see sink\.storage_options or the variables"),
        options_named("sink.storage_options"),
    ):
        raise error
    for other in (InfraError("see storage_options"), JobError("no such bucket")):
        with pytest.raises(type(other)) as caught, options_named("sink.storage_options"):
            raise other
        assert caught.value is other


def answered(code: str = "", status: int = 0) -> ClientError:
    """As botocore tells of an answer."""
    return ClientError(
        {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject"
    )


def azure_answered(code: StorageErrorCode | str | None, status: int | None) -> HttpResponseError:
    error = HttpResponseError("no")
    error.status_code, error.error_code = status, code
    return error


def caused(error: BaseException, by: BaseException) -> BaseException:
    error.__cause__ = by
    return error


ANSWERS: list[tuple[BaseException, type[PipelineError], str]] = [
    (answered("NoSuchBucket", 404), JobError, "no such bucket"),
    (answered("ExpiredToken", 400), JobError, "credentials are wrong"),
    (answered("Odd", 418), JobError, "refused with Odd"),
    (answered("Odd", 400), JobError, "wrong region or endpoint"),
    (answered("Odd", 499), JobError, "refused with Odd"),
    (answered("Odd", 403), AccessDenied, "access denied: .* credentials are wrong"),
    (answered("", 404), JobError, "no such file"),
    *((answered("Odd", status), TransientError, "answered Odd") for status in (408, 409, 412, 429)),
    *((answered("Odd", status), TransientError, "answered Odd") for status in (301, 500, 503)),
    (ClientError({"ResponseMetadata": {"HTTPStatusCode": 301}}, "x"), JobError, "wrong region"),
    (ClientError({"Error": {"Code": "NoSuchBucket"}}, "x"), JobError, "no such bucket"),
    (answered("", 503), TransientError, "the store answered 503; run again later"),
    (answered("ThrottlingException", 400), TransientError, "answered ThrottlingException"),
    (answered("SlowDownRead", 400), TransientError, "answered SlowDownRead"),
    (azure_answered(StorageErrorCode.CONTAINER_NOT_FOUND, 404), JobError, "no such bucket"),
    (azure_answered("BlobArchived", 409), AccessDenied, "archived: restore it"),
    (azure_answered(None, 403), AccessDenied, "access denied"),
    (azure_answered(None, 503), TransientError, "answered 503"),
    (azure_answered(None, None), TransientError, "cannot be reached or broke off"),
    (ServiceRequestError("no"), TransientError, "cannot be reached or broke off"),
    (HttpError({"code": 401}), JobError, "credentials are wrong"),
    (HttpError({"code": 500}), TransientError, "answered 500"),
    (HttpError({}), TransientError, "cannot be reached or broke off"),
    (
        caused(OSError(5, "eio"), answered("AccessDenied", 403)),
        AccessDenied,
        "access denied: allow",
    ),
    (OSError("Forbidden: b/x"), AccessDenied, "access denied: .* credentials are wrong"),
    (OSError("Forbidden: Rate Limit Exceeded"), TransientError, "answered 403"),
    (OSError("It is Forbidden: Rate Limit"), TransientError, "cannot be reached or broke off"),
    (NoCredentialsError(), JobError, "credentials are wrong"),
    (NoRegionError(), JobError, "wrong region or endpoint"),
    (caused(OSError("x"), NoCredentialsError()), JobError, "credentials are wrong"),
    (type("Own", (NoCredentialsError,), {})(), JobError, "credentials are wrong"),
    (RefreshError("x", retryable=True), TransientError, "cannot be reached or broke off"),
    (RefreshError("x", retryable=False), JobError, "credentials are wrong"),
    (FileExpired("x"), InfraError, "it changed since it was listed; run again"),
    (BadBlock("x"), BadBlockError, "the disk cannot read it"),
    *((OSError(n, "x"), InfraError, "no space left: free") for n in (errno.ENOSPC, errno.EDQUOT)),
    (OSError(errno.EFBIG, "x"), JobError, "too large for this file system"),
    (OSError(errno.EROFS, "x"), JobError, "read-only file system"),
    (OSError(errno.EACCES, "x"), AccessDenied, "access denied: allow"),
    (OSError(errno.EPERM, "x"), JobError, "not allowed there"),
    (answered("InvalidObjectState", 403), AccessDenied, "archived: restore it"),
    *(
        (OSError(n, "x"), JobError, "no such file|not a")
        for n in (errno.ENOENT, errno.ENAMETOOLONG)
    ),
    *(
        (OSError(n, "x"), TransientError, "cannot be reached or broke off")
        for n in (errno.EIO, errno.ESTALE, errno.ECONNRESET, errno.ETIMEDOUT)
    ),
    (TypeError("frobnicate"), JobError, "see storage_options and the URI .frobnicate"),
    (ValueError("x"), JobError, "refused by the storage library"),
    (ConnectionResetError(), TransientError, "broke off; check it and run again .Connection"),
]


@pytest.mark.parametrize(("error", "error_type", "words"), ANSWERS, ids=range(len(ANSWERS)))
def test_an_error_is_the_users_the_stores_or_over_in_a_moment(
    error: BaseException, error_type: type[PipelineError], words: str
):
    classified = classify(error, "cannot read s3cr3t/x", ["s3cr3t"])
    assert type(classified) is error_type
    with pytest.raises(error_type, match=rf"^cannot read \*\*\*/x: .*{words}"):
        raise classified


def test_an_error_that_was_handled_before_does_not_decide():
    def fail_while_handling() -> None:
        try:
            raise PermissionError(errno.EACCES, "no")
        except PermissionError:
            raise OSError(errno.ENOSPC, "full")  # noqa: B904 - the missing cause is the point

    with pytest.raises(InfraError), storage_errors("cannot write x"):
        fail_while_handling()


def test_mistakes_in_our_own_code_stay_visible():
    for mistake in (KeyError("x"), ValueError("x"), TypeError("x")):
        with pytest.raises(type(mistake)) as caught, storage_errors("cannot read x"):
            raise mistake
        assert caught.value is mistake


def test_causes_that_run_in_circles_end():
    first, second = OSError("first"), OSError("second")
    first.__cause__, second.__cause__ = second, first
    assert type(classify(first, "x")) is TransientError


def test_our_own_errors_pass_as_they_are():
    for error in (JobError("x"), InfraError("y")):
        assert classify(error, "cannot read x") is error
        with pytest.raises(type(error)) as caught, storage_errors("cannot read x"):
            raise error
        assert caught.value is error


def test_a_missing_file_is_told_from_a_missing_bucket_where_the_caller_asks():
    gone = FileNotFoundError("gone")
    no_bucket = caused(FileNotFoundError("gone"), answered("NoSuchBucket", 404))
    no_container = caused(FileNotFoundError("gone"), azure_answered("ContainerNotFound", 404))
    assert is_missing(gone)
    assert is_missing(caused(FileNotFoundError("gone"), answered("NoSuchKey", 404)))
    assert not any(map(is_missing, (no_bucket, no_container, answered("NoSuchKey", 404))))
    with pytest.raises(FileNotFoundError) as caught, storage_errors("read", missing="s3://b/x"):
        raise gone
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, "s3://b/x")
    for error, missing in ((gone, None), (no_bucket, "s3://b/x")):
        assert type(translate(error, "cannot read x", (), missing)) is JobError


def test_a_name_that_is_taken_is_a_conflict():
    taken = (FileExistsError(), answered("PreconditionFailed"), answered("Odd", 412))
    assert all(map(is_conflict, (*taken, azure_answered(None, 412))))
    assert not any(map(is_conflict, (OSError(), answered("Odd", 409), answered("NoSuchKey", 404))))
    assert not is_conflict(ResourceExistsError("x"))


def test_a_wrong_value_is_the_stores_only_if_its_library_raised_it():
    with pytest.raises(JobError, match="see storage_options"), storage_errors("cannot read x"):
        fsspec.filesystem("no-such-protocol")
    with pytest.raises(InfraError, match="answered 500"), storage_errors("cannot read x"):
        raise HttpError({"code": 500})
    with pytest.raises(JobError, match="credentials are wrong"), storage_errors("cannot read x"):
        raise NoCredentialsError
    with pytest.raises(JobError, match="access denied"), storage_errors("cannot read x"):
        raise azure_answered(None, 403)
    never_raised = ValueError("x")
    assert translate(never_raised, "cannot read x", (), None) is never_raised


def test_a_listed_file_that_is_gone_means_another_run():
    class Wrapped(FileNotFoundError):
        """As Ray wraps what a task raised."""

        cause = FileNotFoundError(errno.ENOENT, "gone", "s3://b/x")

    where = "^s3://b/x: disappeared while it was used; run again$"
    for error in (Wrapped("far away"), Wrapped.cause):
        with pytest.raises(InfraError, match=where), listed_files():
            raise error
    with pytest.raises(InfraError, match=r"^secret=\*\*\*: disappeared"), listed_files():
        raise FileNotFoundError("secret=s3cr3t")


def test_messages_are_short_lines_in_which_the_longest_secret_is_hidden_first():
    assert redact("a abc b", ["a", "abc"]) == "*** *** b"
    for form in ("a%2Fb%2Bc%3D", "a/b%2Bc%3D", "a/b+c="):
        assert redact(f"GET /?p={form} no", ["a/b+c="]) == "GET /?p=*** no"
    assert redact("one\n two\x1b[31m") == r"one two\x1b[31m"
    assert redact("key" * 20_000) == ("key" * 20_000)[:400]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("my-secret-key=abc,x=token='a b'", "my-secret-key=***,x=token=***"),
        ('{"Token": "abc", "key" : abc}', '{"Token=***, "key=***'),
        ("SIG = abc&y=1 key: abc monkeys", "SIG=***&y=1 key: abc monkeys"),
        ("password: abcd, monkeys", "password: ***, monkeys"),
        ("x-amz-security-token: abcd", "x-amz-security-token: ***"),
        ("Authorization: Bearer abc.de", "Authorization: Bearer ***"),
        ("sent Bearer abc.de no", "sent Bearer *** no"),
        ("text.tokenizer: brings none; model.secret: unknown", None),
        ("https://me:pass@host/a@b", "https://***@host/a@b"),
        (
            "GET https://h/x?X-Amz-Signature=abc&part=1 no",
            "GET https://h/x?X-Amz-Signature=***&part=1 no",
        ),
    ],
)
def test_values_of_what_is_called_a_secret_are_hidden(text: str, shown: str | None):
    assert redact(text) == (shown or text)


def test_options_that_help_are_no_secrets():
    harmless = {"profile": "night", "anon": True, "token": "google_default", "key": "abc"}
    assert secret_values({**harmless, "client_kwargs": {"region_name": "eu-west-1"}}) == []
    numbers = {"password": 12345678, "block_size": 5242880, "keys": ["abcd", {"token": 9876}]}
    numbers |= {"key_size": 1, "use_token": True, "secret": {"keys": 128}}
    assert secret_values(numbers) == ["12345678", "abcd", "9876"]
    assert secret_values({"connection_string": "abc", "token": "abcd", "profiles": "cloud9"}) == [
        "abc",
        "abcd",
        "cloud9",
    ]
