"""`pipeline pull`: copy a model directory from a hub to a store, at one commit, data only.

The hub's library downloads all files, and their digests are checked before the first one reaches
the folder. `config.json`, without which no directory is read, and `pull.json`, which lists all
files, come last: a folder without them is unfinished. A folder never changes its commit, so that no
job's model changes unnoticed.

Answers of a hub are untrusted input. The token comes from HF_TOKEN alone and is never shown; the
library handles proxies and certificates.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pipeline.core.backoff import with_retries
from pipeline.core.errors import InfraError, JobError
from pipeline.core.printable import clean_message, first_names, num_of
from pipeline.core.private_files import first_of
from pipeline.models.directories.files import (
    ADAPTER,
    CONFIG,
    NAMES,
    ONNX_SUFFIX,
    TOKENIZER,
    VOCABULARIES,
)
from pipeline.models.directories.refused import MERGE
from pipeline.report.showing.blocks import format_size
from pipeline.storage.protocols.hf import COMMIT, TIMEOUT_S, hub_error, hub_options
from pipeline.storage.store import Store

RECORD = "pull.json"
_MAX_RECORD_BYTES = 16 << 20
_UNFINISHED = ".pull"
"""Subfolder on disk for unfinished downloads, from which a killed pull resumes."""
_ONNX = ("*.onnx", "*.onnx_data", "*.onnx.data")
ALLOWED = (
    *("*.safetensors", "*.safetensors.index.json", *_ONNX),
    *(*NAMES, "tokenizer*.json", "sentence_*_config.json", *VOCABULARIES),
    *("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt"),
)
"""Names, whatever folder they are in: data and texts, nothing that is run when it is loaded."""
_URI = re.compile(r"hf://((?:[\w][\w.-]*/)?[\w][\w.-]*)(?:@([\w][\w./-]*))?")
_SPARE_BYTES = 256 << 20
"""Space on the disk that a download leaves free."""


class HubRepo(NamedTuple):
    """A repository at one commit."""

    uri: str  # as it was asked for
    name: str
    commit: str
    sizes_bytes: dict[str, int]
    """Of each file, by name."""
    digests: dict[str, str]
    """SHA-256 of a large (LFS) file, git's SHA-1 of a small one."""


def pull(
    uri: str,
    destination: str,
    *,
    include: Sequence[str] = (),
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Copy the allowed files of a repository, and describe the folder.

    Args:
        uri: `hf://org/name[@revision]`.
        destination: A folder on disk or in an object store.
        include: Patterns of files to copy; empty: all allowed files, without ONNX files if there
            are safetensors, and without vocabularies if there is a tokenizer.json.
        storage_options: fsspec options of the destination.

    Raises:
        JobError: There is no such repository, revision or file; a file is not allowed, or its
            digest differs from the hub's; the folder holds another commit.
        InfraError: The hub or the store fails.
    """
    repo, store = read_repo(uri), Store(destination, storage_options or {})
    chosen, held = choose_files(repo, include), _held(store, repo)
    there = [file for name in chosen if name in held and (file := store.stat(name))]
    whole = {file.path for file in there if file.size_bytes == repo.sizes_bytes[file.path]}
    missing = [name for name in chosen if name not in whole]
    held |= _copy(repo, missing, store) if missing else {}
    lines = "".join(f"{name} {held[name]}\n" for name in sorted(held))
    record = {
        "repository": repo.name,
        "commit": repo.commit,
        "sha256": hashlib.sha256(lines.encode()).hexdigest(),
        "files": [
            {"name": name, "size_bytes": repo.sizes_bytes[name], "sha256": held[name]}
            for name in sorted(held)
        ],
    }
    if missing:
        store.put(RECORD, json.dumps({"version": 1, **record}, indent=1).encode())
    return {
        **record,
        "uri": store.url(),
        "bytes": sum(repo.sizes_bytes[name] for name in held),
        "copied": len(missing),
        "left_out": _summary(repo, repo.digests.keys() - held.keys()),
        "used_by": f"jobs with model.path: {store.url()}",
    }


def read_repo(uri: str) -> HubRepo:
    """Resolve `hf://org/name[@revision]` to a commit and its files.

    Raises:
        JobError: The URI is wrong, there is no such repository or revision, access is denied, a
            file's name would leave the folder, or the hub's library is not installed.
        InfraError: The hub does not answer, or its answer describes no repository.
    """
    matched = _URI.fullmatch(uri)
    if matched is None:
        raise JobError(f"{uri}: write hf://org/name or hf://org/name@revision")
    name, revision = matched.groups()
    try:
        from huggingface_hub import HfApi
    except ImportError:
        extra = "pip install 'batch-inference-pipeline[pull]'"
        raise JobError(f"{uri}: needs the extra: {extra}") from None
    api = HfApi(**hub_options())

    def ask() -> HubRepo:
        try:
            commit = api.model_info(name, revision=revision, timeout=TIMEOUT_S).sha
            if not COMMIT.fullmatch(commit):
                raise ValueError("it names no commit")
            tree = api.list_repo_tree(name, recursive=True, revision=commit)
            files = [entry for entry in tree if hasattr(entry, "size")]
            sizes_bytes = {str(file.path): int(file.size) for file in files}
            digests = {f.path: str(f.lfs.sha256 if f.lfs else f.blob_id) for f in files}
        except Exception as error:
            raise hub_error(uri, error) from error
        return HubRepo(uri, name, commit, sizes_bytes, digests)

    repo = with_retries(ask)
    for file_name in repo.digests:
        is_odd = not file_name.isprintable() or "\\" in file_name or ":" in file_name
        if is_odd or {"", ".", ".."} & set(file_name.split("/")):
            raise JobError(f"{uri}: the file name {clean_message(file_name)!r} is refused")
    return repo


def choose_files(repo: HubRepo, include: Sequence[str]) -> list[str]:
    """Return the names of the files to copy.

    Raises:
        JobError: A pattern of `include` matches no file, or only files that are not allowed; there
            are no weights, or only those of an adapter.
    """
    allowed = [name for name in repo.digests if _is_like(name, ALLOWED)]
    for pattern in include:
        matching = [name for name in repo.digests if fnmatchcase(name, pattern)]
        if not matching:
            raise JobError(f"{repo.uri}: --include {pattern}: the repository has no such file")
        if not set(matching) & set(allowed):
            raise JobError(
                f"{repo.uri}: --include {pattern}: {first_names(matching)} is not allowed: only "
                f"{', '.join(ALLOWED)} are copied, since other files may run code when loaded"
            )
    if not any(_is_like(name, ("*.safetensors", *_ONNX)) for name in allowed):
        raise JobError(
            f"{repo.uri}: no *.safetensors and no *.onnx (it has {first_names([*repo.digests])}); "
            "weights in other formats may run code when loaded"
        )
    if include:
        return [name for name in allowed if any(fnmatchcase(name, p) for p in include)]
    if ADAPTER in repo.digests:
        raise JobError(
            f"{repo.uri}: {ADAPTER} is of an adapter (LoRA), which would not be applied: {MERGE}; "
            "or name the files of the model by --include"
        )
    has_weights = any(name.endswith(".safetensors") for name in allowed)
    needless = (*(_ONNX if has_weights else ()), *(VOCABULARIES if TOKENIZER in allowed else ()))
    return [name for name in allowed if not _is_like(name, needless)]


def _is_like(name: str, patterns: Sequence[str]) -> bool:
    base = PurePosixPath(name).name
    return any(fnmatchcase(base, pattern) for pattern in patterns)


def _summary(repo: HubRepo, names: Iterable[str]) -> str:
    """Return in one line the number, size and types of files."""
    kinds = Counter(PurePosixPath(name).suffix or PurePosixPath(name).name for name in names)
    size = format_size(sum(repo.sizes_bytes[name] for name in names))
    counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(kinds.items()))
    return clean_message(f"{num_of(kinds.total(), 'file')}, {size}: {counts or 'none'}")


def _held(store: Store, repo: HubRepo) -> dict[str, str]:
    """Return the digests, by name, of the files of the commit that the folder holds.

    Raises:
        JobError: It holds another commit or repository.
    """
    if store.stat(RECORD) is None:
        return {}
    try:
        record = json.loads(store.read_bytes(RECORD, _MAX_RECORD_BYTES))
        name, commit = str(record["repository"]), str(record["commit"])
        digests = {file["name"]: str(file["sha256"]) for file in record["files"]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise JobError(f"{store.url(RECORD)}: damaged ({error}); delete the folder") from None
    if (name, commit) != (repo.name, repo.commit):
        raise JobError(
            f"{store.url()}: holds {clean_message(name)} at {clean_message(commit)}, not "
            f"{repo.name} at {repo.commit}: pull into another folder"
        )
    return {name: digests[name] for name in repo.digests.keys() & digests.keys()}


def _copy(repo: HubRepo, names: Sequence[str], store: Store) -> dict[str, str]:
    """Copy files to the store, all or none, and return their SHA-256 digests by name."""
    if store.is_object_store:
        key = hashlib.sha256(f"{store.uri} {repo.name} {repo.commit}".encode()).hexdigest()[:16]
        folder = first_of([Path(tempfile.gettempdir()) / f"pipeline-pull-{os.geteuid()}-{key}"])
    else:
        folder = Path(store.url(_UNFINISHED))
        store.put(f"{_UNFINISHED}/{RECORD}", b"")  # makes the folder
    _download(repo, names, folder)
    digests = {name: _checked(repo, name, folder / name) for name in names}
    for name in sorted(names, key=lambda name: _is_like(name, (CONFIG, f"*{ONNX_SUFFIX}"))):
        if store.is_object_store:
            store.put_file(name, str(folder / name))
        else:
            store.copy(f"{_UNFINISHED}/{name}", name)
    shutil.rmtree(folder)
    return digests


def _download(repo: HubRepo, names: Sequence[str], folder: Path) -> None:
    """Download files into a folder on the local disk, except those that are there already.

    Raises:
        JobError: Access is denied.
        InfraError: The download is cut off again and again, does not fit the disk, or the hub does
            not answer.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import tqdm

    class Bars(tqdm):  # type: ignore[misc]
        """Progress bars of the library, on a terminal alone."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": not sys.stderr.isatty()})

    needed = sum(repo.sizes_bytes[name] for name in names if not (folder / name).exists())
    free = max(0, shutil.disk_usage(folder).free - _SPARE_BYTES)
    if needed > free:
        raise InfraError(f"{repo.uri}: needs {needed} bytes, but {folder} has room for {free}")
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its warnings contain signed URLs
    try:
        snapshot_download(
            repo.name,
            revision=repo.commit,
            allow_patterns=[glob.escape(name) for name in names],
            local_dir=folder,
            cache_dir=folder / ".cache",
            tqdm_class=Bars,
            **hub_options(),
        )
    except Exception as error:  # the library has tried several times
        raise hub_error(repo.uri, error) from error
    finally:
        logger.setLevel(level)
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise InfraError(f"{repo.uri}: {first_names(missing)} did not arrive; run again to resume")


def _checked(repo: HubRepo, name: str, path: Path) -> str:
    """Sync a file to the disk, and return its SHA-256 digest.

    Raises:
        JobError: It is not the hub's; the file is deleted.
    """
    expected = repo.digests[name]
    head = b"blob %d\0" % path.stat().st_size
    with path.open("rb") as data:
        sha256 = digest = hashlib.file_digest(data, "sha256").hexdigest()
        if len(expected) != len(sha256):
            data.seek(0)
            git = hashlib.file_digest(data, lambda: hashlib.sha1(head, usedforsecurity=False))
            digest = git.hexdigest()
        os.fsync(data.fileno())
    if digest != expected:
        path.unlink()
        says = clean_message(expected, 80)
        raise JobError(f"{repo.uri}: {name}: its digest is {digest}, but the hub has {says}")
    return sha256
