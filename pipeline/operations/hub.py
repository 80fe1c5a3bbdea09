"""Ask a model hub for the files of a repository, and fetch them, by the hub's own client.

What a hub says is taken for data of a stranger: each value is checked before it is used. The token
comes from HF_TOKEN alone and is never shown; HF_ENDPOINT, proxies and certificates are as the
client has them.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.backoff import TransientError, with_retries
from pipeline.core.errors import InfraError, JobError, PipelineError
from pipeline.core.printable import clean_message

_URI = re.compile(r"hf://((?:[\w][\w.-]*/)?[\w][\w.-]*)(?:@([\w][\w./-]*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_READ_BYTES = 1 << 20
_TIMEOUT_S = 30.0
"""Without any byte for so long, the description of a repository counts as failed."""
_SPARE_BYTES = 256 << 20
"""What a download leaves of the disk."""


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

    @property
    def is_checkable(self) -> bool:
        """Tell whether the hub says how long it is, and its digest."""
        return self.size_bytes is not None and bool(self.sha256 or self.blob_id)


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
        InfraError: The hub does not answer, or its answer describes no repository.
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

    try:
        described = with_retries(ask)
        if not _COMMIT.fullmatch(described.sha):
            raise ValueError("it names no commit")
        files = tuple(map(_described, described.siblings or []))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = clean_message(str(error), 100)
        raise InfraError(f"{uri}: the hub's answer describes no repository ({reason})") from None
    return HubRepo(uri, name, described.sha, files)


def _described(sibling: Any) -> HubFile:
    """Return a file as the hub describes it.

    Raises:
        Exception: It describes none.
    """
    name, size, lfs = sibling.rfilename, sibling.size, sibling.lfs
    if not isinstance(name, str):
        raise ValueError("a file has no name")
    if size is not None and (type(size) is not int or size < 0):
        raise ValueError("the size of a file is no number of bytes")
    sha256 = None if lfs is None else lfs.sha256
    blob = sibling.blob_id if lfs is None else None  # otherwise it is that of a pointer
    for digest, form in ((sha256, _SHA256), (blob, _COMMIT)):
        if digest is not None and not form.fullmatch(digest):
            raise ValueError("the digest of a file is none")
    return HubFile(name, size, sha256, blob)


def fetch_file(repo: HubRepo, file: HubFile, folder: Path) -> tuple[Path, str]:
    """Fetch a file into a folder on the local disk; return its path there, and its SHA-256 digest.

    Raises:
        JobError: Its content has another digest than the hub says, or access is denied.
        InfraError: The download is cut off again and again, does not fit the disk, or the hub does
            not answer.
    """
    from huggingface_hub import hf_hub_download

    what = f"{repo.uri}: {file.name}"
    free = max(0, shutil.disk_usage(folder).free - _SPARE_BYTES)
    if file.size_bytes is not None and file.size_bytes > free:
        raise InfraError(
            f"{what}: has {file.size_bytes} bytes, and {folder} has room for {free}: set TMPDIR to "
            "a larger disk"
        )
    try:
        with _hub_errors(what), _silent_client():
            path = hf_hub_download(
                repo.name,
                file.name,
                revision=repo.commit,
                local_dir=folder,
                cache_dir=folder,
                endpoint=_endpoint(),
                token=_token(),
            )
    except TransientError as error:  # the client has tried several times
        raise InfraError(f"{error}; run again to try anew") from error
    return Path(path), _checked(repo, file, Path(path))


def _checked(repo: HubRepo, file: HubFile, path: Path) -> str:
    """Return the digest of a file that came.

    Raises:
        JobError: It is not the hub's.
    """
    what, size_bytes = f"{repo.uri}: {file.name}", path.stat().st_size
    if file.size_bytes not in (None, size_bytes):
        raise JobError(
            f"{what}: has {size_bytes} bytes, the hub says {file.size_bytes}; not copied"
        )
    sha256 = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)
    with path.open("rb") as data:
        while piece := data.read(_READ_BYTES):
            sha256.update(piece)
            git.update(piece)
    digest, expected, digest_name = sha256.hexdigest(), file.sha256, "sha256"
    if expected is None and file.blob_id is not None:
        digest, expected, digest_name = git.hexdigest(), file.blob_id, "git digest"
    if expected is not None and digest != expected:
        raise JobError(f"{what}: {digest_name} is {digest}, the hub says {expected}; not copied")
    return sha256.hexdigest()


def _endpoint() -> str | None:
    """Return the address of the hub; None: the usual one."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def _token() -> str | bool:
    """Return the token; False: none, not the one that the library may have stored."""
    return os.environ.get("HF_TOKEN", "").strip() or False


@contextmanager
def _silent_client() -> Iterator[None]:
    """Show no progress bars of the client, and no warnings, which have signed addresses."""
    from huggingface_hub import utils

    logger = logging.getLogger("huggingface_hub")
    level, had_bars = logger.level, not utils.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    utils.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if had_bars:
            utils.enable_progress_bars()


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """Turn errors of the client library into ours, in one line and without its advice."""
    from huggingface_hub import errors

    try:
        yield
    except Exception as error:
        cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
        ours = _translated(what, cause or error)
        if ours is None:
            raise
        raise ours from error


def _translated(what: str, error: BaseException) -> PipelineError | None:
    """Return our error for one of the client; None: it is none of the client's."""
    from huggingface_hub import errors

    access = f"HF_TOKEN is {'not accepted' if _token() else 'not set'}"
    if isinstance(error, errors.GatedRepoError):
        hint = "accept its terms on its page, then set HF_TOKEN"
        return JobError(f"{what}: is gated, and {access}: {hint}")
    if isinstance(error, errors.RevisionNotFoundError):
        return JobError(f"{what}: the repository has no such revision")
    if isinstance(error, errors.RepositoryNotFoundError):
        return JobError(f"{what}: no such repository, or a private one, and {access}")
    if isinstance(error, errors.HFValidationError | errors.OfflineModeIsEnabled):
        return JobError(f"{what}: {clean_message(str(error), 200)}")
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return JobError(f"{what}: access denied ({status}), and {access}")
        is_transient = status in (408, 416, 429) or status >= 500
        return (TransientError if is_transient else InfraError)(
            f"{what}: the hub answers with {status}"
        )
    is_of_network = isinstance(error, ConnectionError | TimeoutError | socket.gaierror)
    if isinstance(error, OSError) and error.errno and not is_of_network:
        return InfraError(f"{what}: cannot be written to the local disk: {error.strerror}")
    # Each version of the library has its own HTTP client with its own classes.
    is_of_client = type(error).__module__.startswith(("httpx", "httpcore", "hf_xet"))
    if is_of_client or (
        isinstance(error, OSError | RuntimeError) and not isinstance(error, RecursionError)
    ):
        reason = clean_message(f"{type(error).__name__}: {error}", 200)
        return TransientError(f"{what}: the hub does not answer ({reason})")
    return None
