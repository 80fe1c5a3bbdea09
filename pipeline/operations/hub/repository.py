"""Ask a model hub for the files of a repository, and fetch them: whole, of the right digest.

What a hub says is taken for data of a stranger: each value is checked before it is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from pipeline.core.backoff import TRIES, TransientError, wait_before_retry, with_retries
from pipeline.core.errors import InfraError, JobError
from pipeline.core.printable import clean_message
from pipeline.operations.hub.request import endpoint, hub_errors, requested, within

log = logging.getLogger(__name__)

_URI = re.compile(r"hf://((?:[\w][\w.-]*/)?[\w][\w.-]*)(?:@([\w][\w./-]*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_READ_BYTES = 1 << 20
_MAX_ANSWER_BYTES = 64 << 20
"""Of the description of a repository: a few hundred bytes a file."""
_ANSWER_S, _LEAST_BYTES_PER_S = 120.0, 16 << 10
"""How long an answer may take, and a file besides, by its size."""
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
        from huggingface_hub.utils import validate_repo_id
    except ImportError:
        raise JobError(
            f"{uri}: needs the extra: pip install 'batch-inference-pipeline[pull]'"
        ) from None
    with hub_errors(uri):
        validate_repo_id(name)
    at = f"/revision/{quote(revision, safe='')}" if revision else ""
    url = f"{endpoint()}/api/models/{name}{at}?blobs=true"
    answer = with_retries(lambda: within(_ANSWER_S, uri, lambda is_late: _read(uri, url, is_late)))
    try:
        described = json.loads(answer)
        commit, siblings = described["sha"], described.get("siblings") or []
        if not _COMMIT.fullmatch(commit):
            raise ValueError("it names no commit")
        files = tuple(map(_described, siblings))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        told = clean_message(str(error), 100)
        raise InfraError(f"{uri}: the hub's answer describes no repository ({told})") from None
    return HubRepo(uri, name, commit, files)


def _read(what: str, url: str, is_late: Callable[[], bool]) -> bytes:
    """Return a whole answer of the hub."""
    held = bytearray()
    with requested(what, url) as answer:
        for piece in answer.iter_bytes(_READ_BYTES):
            held += piece
            if len(held) > _MAX_ANSWER_BYTES or is_late():
                raise InfraError(
                    f"{what}: the hub's answer is longer than {_MAX_ANSWER_BYTES} bytes"
                )
    return bytes(held)


def _described(sibling: Any) -> HubFile:
    """Return a file as the hub describes it.

    Raises:
        Exception: It describes none.
    """
    name, size, lfs = sibling["rfilename"], sibling.get("size"), sibling.get("lfs")
    if not isinstance(name, str):
        raise ValueError("a file has no name")
    if size is not None and (type(size) is not int or size < 0):
        raise ValueError("the size of a file is no number of bytes")
    sha256 = None if lfs is None else lfs["sha256"]
    blob = sibling.get("blobId") if lfs is None else None  # otherwise it is that of a pointer
    for digest, form in ((sha256, _SHA256), (blob, _COMMIT)):
        if digest is not None and not form.fullmatch(digest):
            raise ValueError("the digest of a file is none")
    return HubFile(name, size, sha256, blob)


def fetch_file(repo: HubRepo, file: HubFile, target: Path) -> str:
    """Fetch a file to local disk and return its SHA-256 digest; go on where a download was cut.

    Raises:
        JobError: Its content has another digest than the hub says, or access is denied.
        InfraError: The download is cut off again and again, takes too long, does not fit the disk,
            or the hub does not answer.
    """
    what = f"{repo.uri}: {file.name}"
    free = max(0, shutil.disk_usage(target.parent).free - _SPARE_BYTES)
    if file.size_bytes is not None and file.size_bytes > free:
        raise InfraError(
            f"{what}: has {file.size_bytes} bytes, and {target.parent} has room for {free}: set "
            "TMPDIR to a larger disk"
        )
    most = free if file.size_bytes is None else file.size_bytes
    limit_s = _ANSWER_S + most / _LEAST_BYTES_PER_S
    within(limit_s, what, lambda is_late: _fetch(repo, file, target, most, is_late))
    return _checked(repo, file, target)


def _fetch(
    repo: HubRepo, file: HubFile, target: Path, most: int, is_late: Callable[[], bool]
) -> None:
    with target.open("wb") as out:
        furthest, failed = 0, 0
        while not is_late():
            try:
                _go_on(repo, file, out, most, is_late)
                return
            except TransientError as error:
                # Any progress is a new beginning: a slow line may cut a large file many times.
                failed = 1 if out.tell() > furthest else failed + 1
                furthest = max(furthest, out.tell())
                if failed >= TRIES:
                    raise InfraError(f"{error}; run again to try anew") from error
                log.info("%s; trying again", error)
                wait_before_retry(failed)


def _go_on(
    repo: HubRepo, file: HubFile, out: BinaryIO, most: int, is_late: Callable[[], bool]
) -> None:
    """Append what is missing of a file, of at most so many bytes.

    Raises:
        TransientError: The rest is still missing.
    """
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(repo.name, file.name, revision=repo.commit, endpoint=endpoint())
    start = out.tell()
    what = f"{repo.uri}: {file.name}"
    with requested(what, url, {"Range": f"bytes={start}-"} if start else {}) as answer:
        if start and answer.status_code != 206:  # the server sends all of it again
            out.seek(0)
            out.truncate()
        for piece in answer.iter_bytes():  # as it comes: what was received before a cut is kept
            if is_late():
                return
            out.write(piece)
            if out.tell() > most and file.size_bytes is None:
                raise InfraError(f"{what}: is longer than the {most} bytes that the disk holds")
            if out.tell() > most:
                raise JobError(f"{what}: is longer than the {most} bytes of the hub")
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
