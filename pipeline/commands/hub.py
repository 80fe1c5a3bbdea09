"""Ask a model hub for the files of a repository, and fetch them: whole, of the right digest.

The client library `huggingface_hub` makes the requests: HF_ENDPOINT, proxies and certificates are
its own settings. The token comes from HF_TOKEN alone and is never shown.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.core.backoff import TRIES, TransientError, wait_before_retry, with_retries
from pipeline.core.errors import InfraError, JobError, PipelineError
from pipeline.core.printable import clean_message

log = logging.getLogger(__name__)

TOKEN_VARIABLE, ENDPOINT_VARIABLE = "HF_TOKEN", "HF_ENDPOINT"
_URI = re.compile(r"hf://((?:[\w][\w.-]*/)?[\w][\w.-]*)(?:@([\w][\w./-]*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_READ_BYTES = 1 << 20
_TIMEOUT_S = 30.0
"""Without any byte for so long, a request counts as failed."""


@dataclass(frozen=True)
class HubFile:
    """A file of a repository at one commit."""

    name: str
    """Its path in the repository."""
    size_bytes: int | None
    sha256: str | None
    """Of large files, which the hub keeps by this digest."""
    blob_id: str | None
    """Git's SHA-1 digest of the others."""


@dataclass(frozen=True)
class HubRepo:
    """A repository at one commit."""

    uri: str
    """As it was asked for."""
    name: str
    commit: str
    files: tuple[HubFile, ...]


def read_repo(uri: str) -> HubRepo:
    """Resolve `hf://org/name[@revision]` to a commit and its files.

    Raises:
        JobError: The URI is wrong, there is no such repository or revision, access is denied, or
            the client library is not installed.
        InfraError: The hub does not answer.
    """
    matched = _URI.fullmatch(uri)
    if matched is None:
        raise JobError(f"{uri}: write hf://org/name or hf://org/name@revision")
    name, revision = matched.groups()
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise JobError(
            f"{uri}: needs the extra: pip install 'batch-inference-pipeline[pull]'"
        ) from None
    api = HfApi(endpoint=_endpoint(), token=_token())

    def ask() -> Any:
        with _hub_errors(uri):
            return api.model_info(name, revision=revision, files_metadata=True, timeout=_TIMEOUT_S)

    info = with_retries(ask)
    if not _COMMIT.fullmatch(str(info.sha)):
        raise InfraError(f"{uri}: the hub's answer names no commit")
    return HubRepo(uri, name, info.sha, tuple(map(_described, info.siblings or ())))


def _described(sibling: Any) -> HubFile:
    lfs = sibling.lfs
    sha256 = None if lfs is None else str(lfs.sha256)
    return HubFile(str(sibling.rfilename), sibling.size, sha256, sibling.blob_id)


def fetch_file(repo: HubRepo, file: HubFile, target: Path) -> str:
    """Fetch a file to local disk and return its SHA-256 digest; go on where a download was cut.

    Raises:
        JobError: Its content has another digest than the hub says, or access is denied.
        InfraError: The download is cut off again and again, or the hub does not answer.
    """
    with target.open("wb") as out:
        most, failed = 0, 0
        while True:
            try:
                _go_on(repo, file, out)
                break
            except TransientError as error:
                # Any progress is a new beginning: a slow line may cut a large file many times.
                failed = 1 if out.tell() > most else failed + 1
                most = max(most, out.tell())
                if failed >= TRIES:
                    raise InfraError(f"{error}; run again to try anew") from error
                log.info("%s; trying again", error)
                wait_before_retry(failed)
    return _checked(repo, file, target)


def _go_on(repo: HubRepo, file: HubFile, out: BinaryIO) -> None:
    """Append what is missing of a file.

    Raises:
        TransientError: The rest is still missing.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(repo.name, file.name, revision=repo.commit, endpoint=_endpoint())
    headers = {**build_hf_headers(token=_token()), "Accept-Encoding": "identity"}
    start = out.tell()
    if start:
        headers["Range"] = f"bytes={start}-"
    what = f"{repo.uri}: {file.name}"
    with (
        _hub_errors(what),
        get_session().stream(
            "GET", url, headers=headers, timeout=_TIMEOUT_S, follow_redirects=True
        ) as answer,
    ):
        hf_raise_for_status(answer)
        if start and answer.status_code != 206:  # the server sends all of it again
            out.seek(0)
            out.truncate()
        for piece in answer.iter_bytes():  # as it comes: what was received before a cut is kept
            out.write(piece)
            if file.size_bytes is not None and out.tell() > file.size_bytes:
                raise JobError(f"{what}: is longer than the {file.size_bytes} bytes of the hub")
    if file.size_bytes is not None and out.tell() < file.size_bytes:
        raise TransientError(f"{what}: cut off after {out.tell()} of {file.size_bytes} bytes")


def _checked(repo: HubRepo, file: HubFile, path: Path) -> str:
    """Return the digest of a file that came.

    Raises:
        JobError: It is not the hub's.
    """
    sha256 = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as data:
        while piece := data.read(_READ_BYTES):
            sha256.update(piece)
            git.update(piece)
    found, expected, kind = sha256.hexdigest(), file.sha256, "sha256"
    if expected is None and file.blob_id is not None:
        found, expected, kind = git.hexdigest(), file.blob_id, "git digest"
    if expected is not None and found != expected:
        raise JobError(
            f"{repo.uri}: {file.name}: {kind} is {found}, the hub says {expected}; not copied"
        )
    return sha256.hexdigest()


def _endpoint() -> str | None:
    return os.environ.get(ENDPOINT_VARIABLE, "").rstrip("/") or None


def _token() -> str | bool:
    """Return the token; False: none, not the one that the library may have stored."""
    return os.environ.get(TOKEN_VARIABLE, "").strip() or False


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """Turn errors of the client library into ours, in one line and without its advice."""
    from huggingface_hub import errors

    try:
        yield
    except PipelineError:
        raise
    except errors.GatedRepoError as error:
        hint = f"accept its terms on its page, then set {TOKEN_VARIABLE}"
        raise JobError(f"{what}: is gated, and {_access()}: {hint}") from error
    except errors.RevisionNotFoundError as error:
        raise JobError(f"{what}: the repository has no such revision") from error
    except errors.RepositoryNotFoundError as error:
        raise JobError(f"{what}: no such repository, or a private one, and {_access()}") from error
    except (errors.HFValidationError, errors.OfflineModeIsEnabled) as error:
        raise JobError(f"{what}: {clean_message(str(error), 200)}") from error
    except errors.HfHubHTTPError as error:
        raise _by_status(what, error.response.status_code) from error
    except Exception as error:
        # Each version of the library has its own HTTP client with its own classes.
        if not isinstance(error, OSError | ValueError) and not _is_of_client(error):
            raise
        told = clean_message(f"{type(error).__name__}: {error}", 200)
        raise TransientError(f"{what}: the hub does not answer ({told})") from error


def _by_status(what: str, status: int) -> PipelineError:
    if status in (401, 403):
        return JobError(f"{what}: access denied ({status}), and {_access()}")
    if status in (408, 416, 429) or status >= 500:
        return TransientError(f"{what}: the hub answers with {status}")
    return InfraError(f"{what}: the hub answers with {status}")


def _access() -> str:
    return f"{TOKEN_VARIABLE} is {'not accepted' if _token() else 'not set'}"


def _is_of_client(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0].startswith(("httpx", "httpcore"))
