"""Datasets of the Hugging Face Hub, through huggingface_hub: read only, one commit at a time.

A repository is a file system here: none of its code is looked at. Answers of the hub are untrusted
input. The token comes from HF_TOKEN alone and is never shown; the library handles proxies and
certificates, and sends the token to no other host.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn
from urllib.parse import unquote

from pipeline.core.backoff import TransientError
from pipeline.core.errors import InfraError, InputMissing, JobError, PipelineError
from pipeline.core.printable import clean_message
from pipeline.storage.interface import FileExpired, Page
from pipeline.storage.protocols.object_protocol import (
    Fetch,
    ObjectProtocol,
    copy_plainly,
    file_info,
    stored_file,
)

_PATH = re.compile(r"datasets/([^/@]+/[^/@]+)(?:@(refs/(?:convert|pr)/[^/]+|[^/@]+))?(?:/(.*))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT_S = 30.0
_KEPT_INFOS, _THREADS = 10_000, 32


class _Place(NamedTuple):
    repo: str
    revision: str
    name: str
    """Path in the repository; '' for its root."""

    @classmethod
    def of(cls, path: str) -> _Place:
        matched = _PATH.fullmatch(path)
        assert matched is not None, "checked before"
        repo, revision, name = matched.groups()
        return cls(repo, unquote(revision or "main"), name or "")


@dataclass(frozen=True)
class Hub:
    """The files of datasets: the methods of a synchronous file system that stores use.

    huggingface_hub's own file system lists the folder of each file that it opens, reads ahead, and
    retries uncounted; so it only lists here.
    """

    endpoint: str | None
    token: str | bool = field(repr=False)

    @property
    def api(self) -> Any:
        """The client of the hub's API."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self.token)

    def info(self, path: str) -> dict[str, Any]:
        """Return type, size in bytes and version; raise FileNotFoundError if there is nothing."""
        is_pinned = COMMIT.fullmatch(_Place.of(path).revision)
        return dict((_kept_info if is_pinned else _info)(self, path))

    def cat_file(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        """Read a file, or its bytes [start, end), in one request."""
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        repo, revision, name = _Place.of(path)
        headers = build_hf_headers(token=self.token) | {"Accept-Encoding": "identity"}
        is_part = start > 0 or end is not None
        if is_part:
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        where = {"repo_type": "dataset", "revision": revision, "endpoint": self.endpoint}
        url = hf_hub_url(repo, name, **where)
        with _errors(path):
            answer = get_session().get(url, headers=headers, timeout=TIMEOUT_S)
            if is_part and answer.status_code == 416:  # nothing from there on
                return b""
            hf_raise_for_status(answer)
            data: bytes = answer.content
        return data[start:end] if is_part and answer.status_code == 200 else data

    def _refuse(self, *_: str | bytes, **__: str) -> NoReturn:
        raise OSError(errno.EROFS, "datasets of the hub are only read")

    pipe_file = put_file = rm_file = cp_file = _refuse


def _info(hub: Hub, path: str) -> Mapping[str, Any]:
    repo, revision, name = _Place.of(path)
    with _errors(path):
        if not name:
            hub.api.dataset_info(repo, revision=revision, timeout=TIMEOUT_S)
            return {"type": "directory", "size": 0}
        entries = hub.api.get_paths_info(repo, [name], revision=revision, repo_type="dataset")
        entry = next((entry for entry in entries if entry.path == name), None)
        if entry is None:
            raise FileNotFoundError
        if not hasattr(entry, "size"):
            return {"type": "directory", "size": 0}
        version = _version(entry.lfs, entry.blob_id)
        return {"type": "file", "size": int(entry.size), "version": version}


_kept_info = functools.lru_cache(_KEPT_INFOS)(_info)
"""The same at a commit, which never changes."""


def _version(lfs: Any, blob_id: Any) -> str:
    """Return the SHA-256 of a large (LFS) file, git's SHA-1 of a small one."""
    return str(lfs.sha256 if lfs else blob_id)


def _connect(options: Mapping[str, Any]) -> Hub:
    if options:
        raise JobError(
            "hf:// has no storage_options: the token is read from HF_TOKEN, the address from "
            "HF_ENDPOINT"
        )
    return _hub(**hub_options())


_hub = functools.lru_cache(Hub)
"""One for each address and token, since stores keep all file systems."""


def _list(hub: Hub, bucket: str, prefix: str, delimited: bool, _: str | None) -> Page:
    """List a folder; the library follows the pages, of large folders several at once."""
    from huggingface_hub import HfFileSystem

    folder = f"{bucket}/{prefix}".rstrip("/")
    # A new one each time, since it keeps what it has listed.
    fs = HfFileSystem(endpoint=hub.endpoint, token=hub.token, skip_instance_cache=True)
    try:
        with _errors(folder):
            if delimited:
                entries = {entry["name"]: entry for entry in fs.ls(folder)}
            else:
                entries = fs.find(folder, detail=True)
            # The path of a file is listed as that file.
            below = {name: e for name, e in entries.items() if name.startswith(f"{folder}/")}
            files = [
                stored_file(name, int(e["size"]), _version(e["lfs"], e["blob_id"]), None)
                for name, e in below.items()
                if e["type"] == "file"
            ]
    except FileNotFoundError:  # the folder alone is missing
        return Page([])
    folders = [name for name, e in below.items() if e["type"] == "directory" and delimited]
    return Page(files, [f"{name.removeprefix(f'{bucket}/')}/" for name in folders])


def _open(hub: Hub, path: str) -> tuple[int, Fetch]:
    pinned = _pin(hub, path)
    return file_info(hub, pinned)["size"], lambda start, end: hub.cat_file(pinned, start, end)


async def _read_version(hub: Hub, path: str, version: str) -> bytes:
    def read() -> bytes:
        data = hub.cat_file(path)
        digest = hashlib.sha256()
        if len(version) != len(digest.hexdigest()):
            digest = hashlib.sha1(b"blob %d\0" % len(data), usedforsecurity=False)
        digest.update(data)
        if digest.hexdigest() != version:
            raise FileExpired(errno.ESTALE, "replaced", path)
        return data

    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_threads(os.getpid()), read)


@functools.lru_cache(1)
def _threads(_pid: int) -> ThreadPoolExecutor:
    """Return the threads of this process: small files are bound by latency."""
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="hub")


def _pin(hub: Hub, path: str) -> str:
    """Return a path with the commit that its revision, by default `main`, means now."""
    repo, revision, name = _Place.of(path)
    if COMMIT.fullmatch(revision):
        return path
    with _errors(path):
        commit = hub.api.dataset_info(repo, revision=revision, timeout=TIMEOUT_S).sha
        if not COMMIT.fullmatch(commit):
            raise ValueError("it names no commit")
    return f"datasets/{repo}@{commit}/{name}".rstrip("/")


def _unpinned(path: str) -> str:
    repo, _, name = _Place.of(path)
    return f"datasets/{repo}/{name}".rstrip("/")


def _trouble(path: str) -> str:
    if _PATH.fullmatch(path):
        return ""
    return "expected hf://datasets/ORG/NAME@REVISION/path, since of a hub only datasets are read"


@contextlib.contextmanager
def _errors(path: str) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        # The library's file system hides the cause behind an error of its own.
        cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
        if cause is None or isinstance(cause, errors.EntryNotFoundError):
            raise FileNotFoundError(errno.ENOENT, "no such file", path) from error
        if isinstance(cause, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
            path = path.removesuffix(_Place.of(path).name).rstrip("/")
        raise hub_error(f"hf://{path}", cause, missing=InputMissing) from error


def hub_options() -> dict[str, Any]:
    """Return the arguments for address and token of the hub; never use a token stored on disk.

    The library reads HF_ENDPOINT only when it is imported.
    """
    endpoint, token = (os.environ.get(f"HF_{name}", "").strip() for name in ("ENDPOINT", "TOKEN"))
    return {"endpoint": endpoint.rstrip("/") or None, "token": token or False}


def hub_error(
    what: str, error: BaseException, missing: type[PipelineError] = JobError
) -> PipelineError:
    """Return our error for an error of the library, in one line.

    Args:
        what: The start of the message.
        error: The error of the library.
        missing: The class for a repository or revision that does not exist.
    """
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__
    access = f"HF_TOKEN is {'not accepted' if hub_options()['token'] else 'not set'}"
    terms = "accept its terms on its page, then set HF_TOKEN"
    no_such = "no such repository, or a private one"
    offline = "HF_HUB_OFFLINE is set, so nothing is downloaded"
    for error_type, ours, reason in (
        (errors.GatedRepoError, JobError, f"is gated, and {access}: {terms}"),
        (errors.RevisionNotFoundError, missing, "the repository has no such revision"),
        (errors.RepositoryNotFoundError, missing, f"{no_such}, and {access}"),
        (errors.OfflineModeIsEnabled, JobError, f"{offline}: unset it"),
        (errors.HFValidationError, JobError, clean_message(str(error), 200)),
    ):
        if isinstance(error, error_type):
            return ours(f"{what}: {reason}")
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return JobError(f"{what}: access denied ({status}), and {access}")
        passes = status in (408, 416, 429) or status >= 500
        return (TransientError if passes else InfraError)(f"{what}: the hub answers with {status}")
    reason = clean_message(f"{type(error).__name__}: {error}", 200)
    if isinstance(error, ValueError | LookupError | TypeError | AttributeError | RecursionError):
        return InfraError(f"{what}: the hub's answer does not describe a repository ({reason})")
    is_of_network = isinstance(error, ConnectionError | TimeoutError)
    if isinstance(error, OSError) and error.errno and not is_of_network:
        return InfraError(f"{what}: cannot write to the local disk: {error.strerror}")
    return TransientError(f"{what}: the hub does not answer ({reason}); run again to resume")


HF = ObjectProtocol(
    extra="pull",
    package="huggingface_hub",
    connect=_connect,
    list_page=_list,
    open=_open,
    read_version=_read_version,
    copy=copy_plainly,
    version="version",
    modified="modified",
    trouble=_trouble,
    pin=_pin,
    unpinned=_unpinned,
    is_read_only=True,
)
