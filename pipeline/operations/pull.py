"""`pipeline pull`: copy a model directory from a hub to a store, at one commit, data only.

Files come first, each checked and put whole; `pull.json`, which names them all, is put last: a
folder without it is unfinished. A folder holds one commit for ever; another one needs another
folder, so that no job's model changes under it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.models.directories.contents import NAMES
from pipeline.operations.hub import HubFile, HubRepo, fetch_file, read_repo
from pipeline.storage.store import Store

log = logging.getLogger(__name__)

RECORD = "pull.json"
_VERSION = 1
_MAX_RECORD_BYTES = 16 << 20
_ONNX = ("*.onnx", "*.onnx_data", "*.onnx.data")
ALLOWED = (
    *("*.safetensors", "*.safetensors.index.json", *_ONNX),
    *(*NAMES, "tokenizer*.json", "sentence_*_config.json"),
    *("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt"),
)
"""Names, whatever folder they are in: data and texts, nothing that is run when it is loaded."""
_SHOWN = 5


def pull(
    uri: str,
    destination: str,
    *,
    include: Sequence[str] = (),
    storage_options: Mapping[str, Any] | None = None,
    unverified: bool = False,
) -> dict[str, Any]:
    """Copy the allowed files of a repository, and return what is there then.

    Args:
        uri: `hf://org/name[@revision]`.
        destination: A folder on disk or in an object store.
        include: Patterns of files to take; empty: all that are allowed, without ONNX files if there
            are safetensors.
        storage_options: fsspec options of the destination.
        unverified: Take files of which the hub says no size or no digest.

    Raises:
        JobError: There is no such repository, revision or file; a file is not allowed, or has
            another digest than the hub says, or the hub says none; the folder holds another commit.
        InfraError: The hub or the store fails.
    """
    repo, store = read_repo(uri), Store(destination, storage_options or {})
    _check_names(repo)
    chosen, left_out = choose_files(repo, include)
    held = _held(store, repo)
    missing = [file for file in chosen if not _is_held(store, file, held)]
    unknown = [file.name for file in missing if not file.is_checkable]
    if unknown and not unverified:
        raise JobError(
            f"{uri}: the hub says no size or no digest of {_listed(unknown)}, so that none can be "
            "checked; --unverified takes them as they come"
        )
    copied = _copy(repo, missing, store)
    if missing:
        held = {**held, **copied}
        _record(store, repo, held)
    return {
        "repository": repo.name,
        "commit": repo.commit,
        "uri": store.url(),
        "sha256": digest_of(held),
        "bytes": sum(entry["size_bytes"] for entry in held.values()),
        "copied": len(copied),
        "files": [{"name": name, **held[name]} for name in sorted(held)],
        "left_out": left_out,
        "used_by": f"jobs that say model.path: {store.url()}",
    }


def choose_files(repo: HubRepo, include: Sequence[str]) -> tuple[list[HubFile], list[str]]:
    """Return the files to copy, and the names of all others.

    Raises:
        JobError: A pattern of `include` names nothing, or only what is not allowed.
    """
    allowed = [file for file in repo.files if _is_like(file.name, ALLOWED)]
    chosen = [file for file in allowed if any(fnmatchcase(file.name, p) for p in include)]
    for pattern in include:
        matching = [file.name for file in repo.files if fnmatchcase(file.name, pattern)]
        if not matching:
            raise JobError(f"{repo.uri}: --include {pattern}: the repository has no such file")
        refused = [name for name in matching if not _is_like(name, ALLOWED)]
        if len(refused) == len(matching):
            raise JobError(
                f"{repo.uri}: --include {pattern}: {_listed(refused)} is not copied: only "
                f"{', '.join(ALLOWED)} are, for other files may run code when they are loaded"
            )
    if not include:
        has_weights = any(file.name.endswith(".safetensors") for file in allowed)
        chosen = [file for file in allowed if not (has_weights and _is_like(file.name, _ONNX))]
    if not any(_is_like(file.name, ("*.safetensors", *_ONNX)) for file in allowed):
        names = [file.name for file in repo.files]
        raise JobError(
            f"{repo.uri}: has no *.safetensors and no *.onnx (it has {_listed(names)}); weights in "
            "other formats may run code when they are loaded"
        )
    taken = {file.name for file in chosen}
    return chosen, sorted(file.name for file in repo.files if file.name not in taken)


def digest_of(held: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the SHA-256 digest over the sorted names of files and their digests."""
    lines = "".join(f"{name} {held[name]['sha256']}\n" for name in sorted(held))
    return hashlib.sha256(lines.encode()).hexdigest()


def _is_like(name: str, patterns: Sequence[str]) -> bool:
    base = PurePosixPath(name).name
    return any(fnmatchcase(base, pattern) for pattern in patterns)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return clean_message(", ".join(names[:_SHOWN]) or "no file") + more


def _check_names(repo: HubRepo) -> None:
    """Refuse a repository with a name that would leave the folder, or is not one everywhere."""
    for file in repo.files:
        parts = file.name.split("/")
        is_odd = not file.name.isprintable() or "\\" in file.name or ":" in file.name
        if is_odd or {"", ".", ".."} & set(parts):
            raise JobError(f"{repo.uri}: the file name {clean_message(file.name)!r} is refused")


def _held(store: Store, repo: HubRepo) -> dict[str, dict[str, Any]]:
    """Return what the folder holds of the commit: file name -> its entry in `pull.json`.

    Raises:
        JobError: It holds another commit or repository.
    """
    record_file = store.stat(RECORD)
    if record_file is None:
        return {}
    try:
        if record_file.size_bytes > _MAX_RECORD_BYTES:
            raise ValueError("too large")
        record = json.loads(store.read_bytes(RECORD))
        name, commit = str(record["repository"]), str(record["commit"])
        held = {
            str(entry["name"]): {
                "size_bytes": int(entry["size_bytes"]),
                "sha256": str(entry["sha256"]),
            }
            for entry in record["files"]
        }
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise JobError(f"{store.url(RECORD)}: damaged ({error}); delete the folder") from None
    if (name, commit) != (repo.name, repo.commit):
        raise JobError(
            f"{store.url()}: holds {clean_message(name)} at {clean_message(commit)}, not "
            f"{repo.name} at {repo.commit}: pull into another folder"
        )
    return held


def _is_held(store: Store, file: HubFile, held: Mapping[str, Mapping[str, Any]]) -> bool:
    entry = held.get(file.name)
    if entry is None or (file.sha256 is not None and entry["sha256"] != file.sha256):
        return False
    there = store.stat(file.name)
    return there is not None and there.size_bytes == entry["size_bytes"]


def _copy(repo: HubRepo, files: Sequence[HubFile], store: Store) -> dict[str, dict[str, Any]]:
    copied = {}
    for file in files:
        with tempfile.TemporaryDirectory(prefix="pipeline-pull-") as folder:
            path, sha256 = fetch_file(repo, file, Path(folder))
            size_bytes = path.stat().st_size
            store.put_file(file.name, str(path))
        copied[file.name] = {"size_bytes": size_bytes, "sha256": sha256}
        log.info("copied %s (%d bytes)", file.name, size_bytes)
    return copied


def _record(store: Store, repo: HubRepo, held: Mapping[str, Mapping[str, Any]]) -> None:
    record = {
        "version": _VERSION,
        "repository": repo.name,
        "commit": repo.commit,
        "sha256": digest_of(held),
        "files": [{"name": name, **held[name]} for name in sorted(held)],
    }
    store.put(RECORD, json.dumps(record, indent=1).encode())
