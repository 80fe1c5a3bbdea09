"""Per-node cache of exported models and the like: the first actor makes one, the others load it.

The key of an artefact says everything that it depends on. eviction.py removes old artefacts that
no process uses.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.cache.eviction import evict_for, num_bytes_of, use
from pipeline.core.cache.private_files import CLAIMS, cache_folder, first_of, locked, one_at_a_time
from pipeline.core.semantics import SEMANTICS

if TYPE_CHECKING:
    import torch

_CLAIM_S = 86_400.0
_PACKAGES = ("torch", "torchvision")
"""All that is kept depends on these."""
_LARGE_BYTES = 1 << 20
"""What is smaller makes no room: to look for it would take longer than to make the artefact."""
_claims: dict[Path, int] = {}
"""What this process has claimed -> a descriptor with the lock on it, open until it ends."""
_claiming = threading.Lock()


def key_of(facts: Any, packages: Sequence[str] = (), module: torch.nn.Module | None = None) -> str:
    """Digest JSON-ready facts and the versions in use, with a module's tensors if it is given.

    Args:
        facts: What is kept, and of what.
        packages: Modules that make it, besides torch and torchvision.
        module: Its tensors decide, too.
    """
    versions = [SEMANTICS["predict"], versions_of(packages)]
    digest = hashlib.sha256(json.dumps([facts, *versions], sort_keys=True).encode())
    if module is not None:
        digest.update(tensors_digest(module).encode())
    return digest.hexdigest()


def tensors_digest(module: torch.nn.Module) -> str:
    """Digest all parameters and buffers of a module, with their names."""
    import torch

    digest = hashlib.sha256()
    tensors = {**module.state_dict(), **dict(module.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        if not isinstance(tensor, torch.Tensor):  # a module's extra state may be anything
            continue
        digest.update(f" {tensor.dtype} {tuple(tensor.shape)}".encode())
        try:
            values = tensor.detach().cpu().contiguous()
            digest.update(values.view(-1).view(torch.uint8).numpy().data)
        except (RuntimeError, TypeError, NotImplementedError):  # quantised, sparse, without data
            digest.update(repr(tensor).encode())
    return digest.hexdigest()


def cached_folder(key: str, write: Callable[[Path], None]) -> Path:
    """Return the folder of an artefact, which `write` fills if there is none yet.

    It stays until this process ends, and for `UNUSED_S` afterwards.

    Raises:
        InfraError: The cache folder is not this user's own.
    """
    folder = cache_folder() / key
    use(key)
    with one_at_a_time(key):
        if folder.exists():
            os.utime(folder)
            return folder
        unfinished = folder.with_name(f".{uuid.uuid4().hex}")
        unfinished.mkdir(mode=0o700)
        try:
            write(unfinished)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    if num_bytes_of(folder) >= _LARGE_BYTES:
        evict_for()
    return folder


def claim_once_per_node(name: str) -> bool:
    """Claim work that one process of this node is to do; False if a running one has it.

    Args:
        name: Unique to the run. Claims of ended processes are free again, and go after a day.
    """
    path = first_of([cache_folder() / CLAIMS]) / name
    with _claiming:
        if path not in _claims:
            try:
                _claims[path] = locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            os.utime(path)
    for other in path.parent.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process removes it
            if other.stat().st_mtime < time.time() - _CLAIM_S:
                other.unlink()
    return True


def versions_of(packages: Sequence[str]) -> dict[str, str]:
    """Return distribution -> version of torch, torchvision and those of the modules that are here.

    Args:
        packages: Names of modules. A distribution mostly has the module's name; if none has, those
            are looked for that bring the module, as `onnxruntime-gpu` does.
    """
    versions = {}
    for name in (*_PACKAGES, *packages):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            others = _distributions_of(name) if find_spec(name) else ()
            versions |= {other: version(other) for other in others}
    return versions


@functools.cache
def _distributions_of(module: str) -> tuple[str, ...]:
    """Return the distributions that bring a module; reads the lists of files of all of them."""
    return tuple(sorted(set(packages_distributions().get(module, ()))))
