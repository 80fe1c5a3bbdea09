"""The checks of `pipeline doctor` on this machine and on access to Ray; they start nothing."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from packaging.requirements import Requirement

from pipeline.core.errors import InfraError, JobError, PipelineError
from pipeline.core.media import FORMATS
from pipeline.core.printable import clean_message
from pipeline.execution.cluster.hardware import embedded_store_bytes
from pipeline.execution.embedded.ray_folder import base_folder, weakness
from pipeline.execution.environment import (
    auth_mode,
    is_open_to_others,
    refuse_autoload,
    sends_token,
    token_file,
)
from pipeline.execution.submit.client import is_loopback
from pipeline.execution.versions import knows_tokens
from pipeline.inference.hardware_facts import absence_here, driver_version
from pipeline.inference.runtimes import all_runtimes, runtime_versions
from pipeline.process.memory import node_bytes
from pipeline.storage.protocols import OBJECT_PROTOCOLS

FindingStatus = Literal["ok", "warn", "fail"]
_GIB = 2**30
_PACKAGES = ("ray", "torch", "torchvision", "pyarrow", "pandas", "fsspec", "pillow")
_OF_MODELS = ("transformers", "tokenizers", "timm")
"""Shown if they are installed, like those of runtimes."""
_EXTRAS = {
    **{protocol.extra: protocol.package for protocol in OBJECT_PROTOCOLS.values()},
    "delta": "deltalake",
    "iceberg": "pyiceberg",
    "where": "sqlglot",
    "submit": "aiohttp",
    "transformers": "transformers",
    "timm": "timm",
    **{row.extra: row.package.replace("-", "_") for row in FORMATS if row.extra},
    "schema": "llguidance",
}
_LEAST_FREE_SHARE = 0.05
"""Ray considers a disk with less full, and starts nothing that may spill there."""
_DISTRIBUTION = "batch-inference-pipeline"


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    status: FindingStatus
    found: str
    """The state, and the remedy if it is not right."""
    exit_code: int = 0


IDLE_GPU = "the job uses no GPU; to use one per actor: --set resources.num_gpus=1"


def look_at_machine(address: str | None, *, wants_gpu: bool | None = None) -> Iterator[Finding]:
    """Check packages, hardware, memory, disk, environment, and access to Ray.

    Args:
        address: The Ray cluster, or its job API; None for an embedded Ray.
        wants_gpu: The job uses a GPU of this machine; None: no job runs here.
    """
    yield _packages()
    yield _extras()
    yield Finding("processor", "ok", f"{len(os.sched_getaffinity(0))} cores")
    yield _gpus(is_wanted=wants_gpu)
    yield from _memory()
    yield _disk_of_ray()
    yield guarded("ray environment", _environment)
    yield from look_at_access(address)


def guarded(name: str, look: Callable[[], str]) -> Finding:
    """Turn an error of a check into a finding with the same exit code."""
    try:
        return Finding(name, "ok", look())
    except PipelineError as error:
        return Finding(name, "fail", str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001  # an error of a library is a finding as well
        message = clean_message(f"{type(error).__name__}: {error}", 300)
        return Finding(name, "fail", message, PipelineError.exit_code)


def _packages() -> Finding:
    needed = [Requirement(text) for text in metadata.requires(_DISTRIBUTION) or []]
    needed = [requirement for requirement in needed if requirement.marker is None]
    wrong = [
        requirement
        for requirement in needed
        if not requirement.specifier.contains(_version(requirement.name) or "0")
    ]
    if wrong:
        listed = ", ".join(
            f"{requirement} (installed: {_version(requirement.name) or 'none'})"
            for requirement in wrong
        )
        return Finding("packages", "fail", f"install {listed}", JobError.exit_code)
    shown = dict.fromkeys([*_PACKAGES, *filter(_version, _OF_MODELS), *runtime_versions()])
    listed = ", ".join(f"{name} {_version(name)}" for name in shown)
    return Finding("packages", "ok", f"python {platform.python_version()}, {listed}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _extras() -> Finding:
    needed: dict[str, tuple[str, ...]] = {extra: (name,) for extra, name in _EXTRAS.items()}
    needed |= {runtime.extra: runtime.packages for runtime in all_runtimes() if runtime.extra}
    there = [extra for extra, packages in needed.items() if all(map(find_spec, packages))]
    absent = [extra for extra in needed if extra not in there]
    description = f"installed: {', '.join(there) or 'none'}"
    return Finding("extras", "ok", description + (f"; not: {', '.join(absent)}" if absent else ""))


def _memory() -> Iterator[Finding]:
    import psutil

    total = node_bytes()  # of the container, if this is one
    available = min(psutil.virtual_memory().available, total)
    description = f"{available / _GIB:.1f} of {total / _GIB:.1f} GiB are free"
    tight = available < 2 * _GIB
    hint = "; Ray and each actor need half a GiB plus the model: free some, or use fewer actors"
    yield Finding("memory", "warn" if tight else "ok", description + (hint if tight else ""))
    shared = Path("/dev/shm")  # noqa: S108  # Ray's, not ours
    if not shared.exists():
        return
    free, wanted = psutil.disk_usage(str(shared)).free, embedded_store_bytes()
    description = (
        f"{free / _GIB:.1f} GiB of /dev/shm are free, an embedded Ray uses {wanted / _GIB:.1f}"
    )
    hint = ": its object store would be on disk; give the container a larger /dev/shm"
    if free >= wanted:
        yield Finding("object store", "ok", description)
    else:
        yield Finding("object store", "warn", description + hint)


def _disk_of_ray() -> Finding:
    folder = base_folder()
    while not folder.exists():  # it is created on demand
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        hint = "not writable; set RAY_TMPDIR to a writable folder"
        return Finding("disk of Ray", "fail", f"{folder}: {hint}", InfraError.exit_code)
    if (weak := weakness(folder)) is not None:
        return Finding("disk of Ray", "warn", weak)
    usage = shutil.disk_usage(folder)
    share = usage.free / usage.total
    description = f"{usage.free / _GIB:.1f} GiB of {folder} are free ({100 * share:.0f}%)"
    if share < _LEAST_FREE_SHARE:
        hint = "; below 5% Ray considers it full: free some, or set RAY_TMPDIR"
        return Finding("disk of Ray", "warn", description + hint)
    return Finding("disk of Ray", "ok", description)


def _environment() -> str:
    refuse_autoload()
    return "no RAY_DATA_AUTOLOAD_* variable is set"


def look_at_access(address: str | None) -> Iterator[Finding]:
    """Check who can reach Ray, and whether a token is sent unencrypted; connects to nothing."""
    file = token_file(os.environ)
    if file.exists() and is_open_to_others(file):
        hint = f"others on this machine can read it; run: chmod 600 {file}"
        yield Finding("ray token", "warn", f"{file}: {hint}")
    if address is None:
        hint = "any user who reaches its ports runs code as you"
        if auth_mode(os.environ) == "disabled":
            yield Finding("ray access", "warn", f"RAY_AUTH_MODE=disabled: {hint}; unset it")
        elif not knows_tokens():
            older = f"Ray {_version('ray')} has no tokens"
            yield Finding("ray access", "warn", f"{older}: {hint}; install 2.52 or newer")
        else:
            description = "an embedded Ray: it requires a token and has no dashboard"
            yield Finding("ray access", "ok", description)
        return
    url = urlsplit(address if "://" in address else f"ray://{address}")
    host = url.hostname or ""
    is_near = host in ("auto", "local") or is_loopback(host)
    has_tls = os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true")
    is_encrypted = url.scheme == "https" or (has_tls and url.scheme == "ray")
    if not sends_token(os.environ) and not is_near:
        hint = "set RAY_AUTH_TOKEN, and start the cluster with RAY_AUTH_MODE=token"
        yield Finding("ray access", "warn", f"{address}: no token in the environment; {hint}")
    elif not is_encrypted and not is_near:
        hint = "use a private network or a tunnel"
        yield Finding("ray access", "warn", f"{address}: the token is sent unencrypted; {hint}")
    else:
        yield Finding("ray access", "ok", address)


def _gpus(*, is_wanted: bool | None) -> Finding:
    """Check the GPUs of this machine."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        description = f"{', '.join(names)}; driver {driver_version() or 'unknown'}"
        if is_wanted is False:
            return Finding("gpu", "warn", f"{description}: {IDLE_GPU}")
        return Finding("gpu", "ok", description)
    description = f"torch {torch.__version__} sees none"
    if is_wanted or (torch.version.cuda and driver_version()):
        return Finding("gpu", "warn", f"{description}: {absence_here()}")
    return Finding("gpu", "ok", f"{description}: models run on the CPU")
