"""Translate errors of stores: JobError, or InfraError if running again may cure it.

TransientError, an InfraError, may be over in a moment; only such an error is retried at once. Error
codes of the stores are known by name; none of their libraries is imported.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from pipeline.core.backoff import BAD_BLOCK, BadBlockError, TransientError
from pipeline.core.errors import AccessDenied, InfraError, JobError, PipelineError
from pipeline.core.printable import clean_message

_ACCESS = "access denied: allow list, read, write and delete there"
_SEE_OPTIONS = "see storage_options"
_CREDENTIALS = (
    f"the credentials are wrong, expired or missing: {_SEE_OPTIONS} or the variables and files "
    "that the store's own tools read (AWS_*, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_*)"
)
_REFUSED = f"{_ACCESS}, or {_CREDENTIALS}"
_REGION = f"wrong region or endpoint: {_SEE_OPTIONS}"
_NAME = "not a valid name there: correct the URI"
_BUCKET = "no such bucket: create it or correct the URI"
_ARCHIVED = "archived: restore it from the archive first"
_OF_ONE_FILE = frozenset([_ACCESS, _REFUSED, _ARCHIVED])
"""Causes that may apply to one file and not to its neighbours."""
_JOB_CODES = {
    "NoSuchBucket": _BUCKET,
    "ContainerNotFound": _BUCKET,
    "InvalidBucketName": _NAME,
    "InvalidResourceName": _NAME,
    "KeyTooLongError": _NAME,
    "InvalidObjectState": _ARCHIVED,
    "BlobArchived": _ARCHIVED,
    "AccessDenied": _ACCESS,
    "AllAccessDisabled": _ACCESS,
    "AccountProblem": _ACCESS,
    "AccountIsDisabled": _ACCESS,
    "AuthorizationFailure": _REFUSED,
    "AuthorizationPermissionMismatch": _ACCESS,
    "InsufficientAccountPermissions": _ACCESS,
    "AuthenticationFailed": _CREDENTIALS,
    "InvalidAuthenticationInfo": _CREDENTIALS,
    "NoAuthenticationInformation": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "InvalidAccessKeyId": _CREDENTIALS,
    "InvalidToken": _CREDENTIALS,
    "ExpiredToken": _CREDENTIALS,
    "TokenRefreshRequired": _CREDENTIALS,
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "301": _REGION,
    "400": f"{_REGION}, or {_CREDENTIALS}",  # a HEAD request gets no more than this
    "401": _CREDENTIALS,
    "403": _REFUSED,
    "404": "no such file",
    "NoSuchKey": "no such file",
    "NotImplemented": "this store cannot do that",
    "501": "this store cannot do that",
}
_RETRY_STATUS = frozenset({408, 409, 412, 429})
_JOB_CLASSES = {
    "NoCredentialsError": _CREDENTIALS,
    "PartialCredentialsError": _CREDENTIALS,
    "CredentialRetrievalError": _CREDENTIALS,
    "TokenRetrievalError": _CREDENTIALS,
    "SSOError": _CREDENTIALS,
    "ProfileNotFound": _CREDENTIALS,
    "DefaultCredentialsError": _CREDENTIALS,
    "RefreshError": _CREDENTIALS,
    "ClientAuthenticationError": _CREDENTIALS,
    "NoSuchBucket": _BUCKET,
    "NoRegionError": _REGION,
    "ParamValidationError": _NAME,
}
_JOB_ERRNOS = {
    errno.ENOENT: "no such file or folder",
    errno.EACCES: _ACCESS,
    errno.EPERM: "not allowed there (a protected file, or a file system without hard links)",
    errno.EROFS: "read-only file system",
    errno.ENOTDIR: "a file stands where a folder should be",
    errno.EEXIST: "a file stands where a folder should be",
    errno.EISDIR: "a folder stands where a file should be",
    errno.ENAMETOOLONG: _NAME,
    errno.ELOOP: "symbolic links form a loop",
    errno.EFBIG: "too large for this file system",
    errno.EOPNOTSUPP: "this file system cannot do that (no hard links?)",
}
_LIBRARIES = frozenset(
    ["adlfs", "aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "s3fs"]
)
_PUBLIC_OPTIONS = frozenset(
    {
        "access",
        "account_host",
        "account_name",
        "addressing_style",
        "consistency",
        "endpoint_url",
        "mode",
        "profile",
        "project",
        "region_name",
        "signature_version",
        "tenant_id",
    }
)
_NO_SECRETS = frozenset(["anon", "browser", "cache", "cloud", "google_default"])
"""Values of the option `token` of gcsfs that only name a way to find credentials."""
_USERINFO = re.compile(r"(?<=://)[^/\s@]+@")
_SENSITIVE = r"(?:key|secret|token|password|signature|credential|sig)"
_KEY_VALUE = re.compile(
    # Match only from the beginning of a word: a long word would take for ever.
    rf"(?i)(?<![\w-])(?=[\w-]*{_SENSITIVE})([\w-]+)"
    r"(?:[\"']?\s*=\s*|[\"']\s*:\s*)(?:\"[^\"]*\"|'[^']*'|[^\s,;&\"']+)"
)
_HEADER = re.compile(
    # Fields of a job, as in "text.token: unknown", must not match.
    r"(?i)(?<![\w.-])((?:(?:proxy-)?authorization|password|secret|[\w-]+-token)\s*:"
    r"(?:\s*(?:bearer|basic))?|bearer)\s+[^\s,;&\"']{4,}"
)
_LINE_MAX_CHARS = 400


@contextlib.contextmanager
def storage_errors(
    what: str, secret_values: Sequence[str] = (), *, missing: str | None = None
) -> Iterator[None]:
    """Turn storage errors of the body into PipelineErrors; other exceptions pass unchanged.

    Args:
        what: Start of the message, such as `cannot read s3://bucket/file`.
        secret_values: Strings that must not appear in the message.
        missing: Name of the file in the FileNotFoundError that is raised if it does not exist;
            None: that is a JobError.
    """
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        translated = translate(error, what, secret_values, missing)
        if translated is error:
            raise
        raise translated from error


@contextlib.contextmanager
def options_named(field: str) -> Iterator[None]:
    """Name the field of the storage options, such as `sink.storage_options`, in errors."""
    try:
        yield
    except JobError as error:
        message = str(error).replace(_SEE_OPTIONS, f"see {field}")
        if type(error) is not JobError or message == str(error):
            raise
        raise JobError(message) from error


@contextlib.contextmanager
def listed_files() -> Iterator[None]:
    """Read files in the body that existed a moment ago.

    Raises:
        InfraError: A file is gone: garbage was collected, or another run has replaced the file.
    """
    try:
        yield
    except FileNotFoundError as error:
        cause = getattr(error, "cause", error)  # Ray wraps the error of a task
        name = getattr(cause, "filename", None) or redact(str(cause))
        raise InfraError(f"{name}: disappeared while it was used; run again") from error


def classify(error: BaseException, what: str, secret_values: Sequence[str] = ()) -> PipelineError:
    """Return our error for a raw storage error: JobError, InfraError or TransientError."""
    if isinstance(error, PipelineError):
        return error
    error_type, advice = _diagnose(error)
    if advice in _OF_ONE_FILE:
        error_type = AccessDenied
    detail = redact(str(error) or type(error).__name__, secret_values)
    return error_type(f"{redact(what, secret_values)}: {advice} ({detail})")


def redact(text: str, secret_values: Iterable[str] = ()) -> str:
    """Return text as one short line without credentials."""
    for value in sorted(secret_values, key=len, reverse=True):
        for form in (value, quote(value, safe=""), quote(value)):
            text = text.replace(form, "***")
    text = _KEY_VALUE.sub(r"\1=***", _USERINFO.sub("***@", text))
    text = _HEADER.sub(r"\1 ***", text)
    return clean_message(text, _LINE_MAX_CHARS)


def translate(
    error: Exception, what: str, secret_values: Sequence[str], missing: str | None
) -> Exception:
    """Return the error to raise for a raw one: a PipelineError, FileNotFoundError, or itself.

    Args:
        error: The error of the library.
        what: The start of the message.
        secret_values: Strings that must not appear in the message.
        missing: The path for a FileNotFoundError; None: a missing file is a JobError.
    """
    if missing is not None and is_missing(error):
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), missing)
    return classify(error, what, secret_values) if _is_storage_trouble(error) else error


def _diagnose(error: BaseException) -> tuple[type[PipelineError], str]:
    """Return the class of our error, and the advice to the user."""
    if type(error).__name__ == "FileExpired":
        return InfraError, "it changed since it was listed; run again"
    if type(error).__name__ == "BadBlock":
        return BadBlockError, BAD_BLOCK
    if str(error).startswith("Forbidden: "):  # gcsfs says no more about a 403
        is_throttled = "rate limit" in str(error).lower()
        return _throttled("403") if is_throttled else (JobError, _JOB_CODES["403"])
    code, status = _response_code(error)
    if code:
        return _diagnose_code(code, status)
    names = (base.__name__ for cause in _causes(error) for base in type(cause).__mro__)
    known = next((name for name in names if name in _JOB_CLASSES), None)
    if known and getattr(error, "retryable", False) is not True:
        return JobError, _JOB_CLASSES[known]
    # For a 404 gcsfs gives no more than its class.
    is_absent = isinstance(error, FileNotFoundError)
    number = errno.ENOENT if is_absent else getattr(error, "errno", None)
    if number in _JOB_ERRNOS:
        return JobError, _JOB_ERRNOS[number]
    if number in (errno.ENOSPC, errno.EDQUOT):
        return InfraError, "no space left: free some space and run again"
    if isinstance(error, TypeError | ValueError):
        return JobError, "refused by the storage library: see storage_options and the URI"
    return TransientError, "the store cannot be reached or broke off; check it and run again"


def _diagnose_code(code: str, status: int) -> tuple[type[PipelineError], str]:
    if code in _JOB_CODES:
        return JobError, _JOB_CODES[code]
    throttled = status in _RETRY_STATUS or code.startswith(("Throttl", "SlowDown"))
    if 400 <= status < 500 and not throttled:
        return JobError, _JOB_CODES.get(str(status), f"refused with {code}")
    return _throttled(code)


def _throttled(code: str) -> tuple[type[PipelineError], str]:
    return TransientError, f"the store answered {code}; run again later"


def _response_code(error: BaseException) -> tuple[str, int]:
    """Find the code and HTTP status of a service's answer, without importing its library."""
    for cause in _causes(error):
        library = type(cause).__module__.partition(".")[0]
        status = getattr(cause, "status_code" if library == "azure" else "code", None)
        if library in ("azure", "gcsfs") and str(status).isdecimal():
            code = getattr(cause, "error_code", None)
            return str(getattr(code, "value", code) or status), int(str(status))
        response = getattr(cause, "response", None)
        if isinstance(response, Mapping):
            code = str(response.get("Error", {}).get("Code", ""))
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return code or str(status), int(status)
    return "", 0


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its declared causes; the context may be an unrelated, handled error."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        yield current
        seen.add(id(current))
        current = current.__cause__


def is_missing(error: BaseException) -> bool:
    """Tell whether a file is missing, and not its bucket."""
    code, _ = _response_code(error)
    return isinstance(error, FileNotFoundError) and code not in (
        "NoSuchBucket",
        "ContainerNotFound",
    )


def is_behind_end(error: BaseException) -> bool:
    """Tell whether bytes were requested that are behind the end of a file; s3fs says EINVAL."""
    _, status = _response_code(error)
    return status == 416 or (isinstance(error, OSError) and error.errno == errno.EINVAL)


def is_conflict(error: BaseException) -> bool:
    """Tell whether a create was refused because the name is taken, by whatever writer."""
    code, status = _response_code(error)
    return isinstance(error, FileExistsError) or code == "PreconditionFailed" or status == 412


def _is_storage_trouble(error: BaseException) -> bool:
    """Tell whether an error is one of storage, not a mistake in our own code."""
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _LIBRARIES:
        return True
    if not isinstance(error, TypeError | ValueError) or error.__traceback__ is None:
        return False
    innermost = error.__traceback__
    while innermost.tb_next is not None:
        innermost = innermost.tb_next
    module = str(innermost.tb_frame.f_globals.get("__name__", ""))
    return module.partition(".")[0] in _LIBRARIES


def secret_values(options: Mapping[str, Any]) -> list[str]:
    """Collect the secrets among storage options: all strings that are not known to be public.

    Integers count if they have four digits or more and the name of a secret.
    """
    secrets: list[str] = []
    for name, value in options.items():
        if isinstance(value, list | tuple):
            for item in value:
                secrets += secret_values({name: item})
        elif type(value) is int and re.search(_SENSITIVE, name.lower()):
            secrets += [text] if len(text := str(value)) >= 4 else []
        elif isinstance(value, Mapping):
            secrets += secret_values(value)
        elif name == "connection_string" and isinstance(value, str):
            # A message may contain a part of it. The key ends in `=`: cut a pair only once.
            pairs = dict(pair.partition("=")[::2] for pair in value.split(";"))
            keys = ("AccountKey", "SharedAccessSignature")
            secrets += [secret for secret in (value, *map(pairs.get, keys)) if secret]
        elif isinstance(value, str) and len(value) >= 4 and name not in _PUBLIC_OPTIONS:
            secrets += [] if value in _NO_SECRETS else [value]
    return secrets
