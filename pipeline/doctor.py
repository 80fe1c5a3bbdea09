"""`pipeline doctor`: look at all that a run will need, and say what is wrong and what is right.

Nothing is started and nothing is published. A check that fails ends with the exit code that a run
would end with.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import platform
import resource
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pipeline.allocation import Hardware, allocate
from pipeline.choose import AUTO
from pipeline.cluster import embedded_store_bytes, refuse_autoload
from pipeline.errors import JobError, PipelineError
from pipeline.inputs import list_inputs
from pipeline.job import Job
from pipeline.model import PRECISIONS, resolve_model
from pipeline.record import RunOptions
from pipeline.storage import Store

Status = Literal["ok", "warn", "fail"]
_GIB = 2**30
_PACKAGES = ("ray", "torch", "torchvision", "pyarrow", "pandas", "fsspec", "pillow")
_EXTRAS = {
    "s3": "s3fs",
    "gcs": "gcsfs",
    "azure": "adlfs",
    "delta": "deltalake",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "submit": "aiohttp",
}
_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd")
_LEAST_FREE_SHARE = 0.05
"""Ray takes a disk with less for full, and starts nothing that may spill there."""
_LEAST_FILES = 4096
_MANY_ROWS = 2**30
_TOKEN_FILE = Path("~/.ray/auth_token")


@dataclass(frozen=True)
class Check:
    """What one look gave."""

    check: str
    status: Status
    found: str
    """What there is; where it is not right, what would be."""
    exit_code: int = 0


def examine(job: Job | None, options: RunOptions) -> tuple[dict[str, Any], int]:
    """Look at this machine, at the cluster's address, and at all that a job names.

    Args:
        job: None looks at the machine only.
        options: The cluster's address, and what may be imported.

    Returns:
        The findings, and the exit code of the first that fails; 0 where none does.
    """
    checks = [*_machine(options.address)]
    if job is not None:
        checks += _job(job, options)
    statuses = [check.status for check in checks]
    worst: Status = "fail" if "fail" in statuses else "warn" if "warn" in statuses else "ok"
    shown = [{k: v for k, v in asdict(check).items() if k != "exit_code"} for check in checks]
    code = next((check.exit_code for check in checks if check.status == "fail"), 0)
    return {"status": worst, "checks": shown}, code


def _machine(address: str | None) -> Iterator[Check]:
    yield _packages()
    yield _extras()
    yield _processor()
    yield _gpus()
    yield from _memory()
    yield _disk_of_ray()
    yield _open_files()
    yield _guarded("ray environment", _environment)
    yield from _authentication(address)


def _guarded(name: str, look: Callable[[], str]) -> Check:
    """Turn what a look raises into a check that fails with the same exit code."""
    try:
        return Check(name, "ok", look())
    except PipelineError as error:
        return Check(name, "fail", str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001  # a library's error is a finding, too
        found = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return Check(name, "fail", found, PipelineError.exit_code)


def _packages() -> Check:
    found = [f"python {platform.python_version()}"]
    missing = [name for name in _PACKAGES if _version(name) is None]
    found += [f"{name} {_version(name)}" for name in _PACKAGES if name not in missing]
    if missing:
        return Check("packages", "fail", f"missing: {', '.join(missing)}; install again", 2)
    return Check("packages", "ok", ", ".join(found))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _extras() -> Check:
    there = [extra for extra, name in _EXTRAS.items() if importlib.util.find_spec(name)]
    absent = [extra for extra in _EXTRAS if extra not in there]
    found = f"installed: {', '.join(there) or 'none'}"
    return Check("extras", "ok", found + (f"; not: {', '.join(absent)}" if absent else ""))


def _processor() -> Check:
    cores = len(os.sched_getaffinity(0))
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    words = set(text.split())
    flags = [flag for flag in _CPU_FLAGS if flag in words]
    return Check("processor", "ok", f"{cores} cores, {', '.join(flags) or platform.machine()}")


def _gpus() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("gpu", "ok", f"torch {torch.__version__} sees none: models run on the CPU")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Check("gpu", "ok", ", ".join(names))


def _memory() -> Iterator[Check]:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB are free"
    tight = memory.available < 2 * _GIB
    hint = "; Ray and each actor take half a GiB and the model: free some, or run fewer actors"
    yield Check("memory", "warn" if tight else "ok", found + (hint if tight else ""))
    shared = Path("/dev/shm")  # noqa: S108  # Ray's, not ours
    if not shared.exists():
        return
    free, wanted = psutil.disk_usage(str(shared)).free, embedded_store_bytes()
    found = f"{free / _GIB:.1f} GiB of /dev/shm are free, an embedded Ray takes {wanted / _GIB:.1f}"
    hint = ": its object store would lie on disk; give the container a larger /dev/shm"
    yield Check("object store", "ok" if free >= wanted else "warn", found + hint * (free < wanted))


def _disk_of_ray() -> Check:
    folder = Path(os.environ.get("RAY_TMPDIR", "/tmp"))  # noqa: S108  # Ray's default
    usage = shutil.disk_usage(folder)
    share = usage.free / usage.total
    found = f"{usage.free / _GIB:.1f} GiB of {folder} are free ({100 * share:.0f}%)"
    if share < _LEAST_FREE_SHARE:
        hint = "; below 5% Ray takes it for full: free some, or set RAY_TMPDIR"
        return Check("disk of Ray", "warn", found + hint)
    return Check("disk of Ray", "ok", found)


def _open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _LEAST_FILES and soft < hard:
        return Check("open files", "ok", f"{soft}, which Ray raises to {hard}")
    status: Status = "ok" if soft >= _LEAST_FILES else "warn"
    hint = "" if status == "ok" else f"; Ray wants {_LEAST_FILES}: raise it (ulimit -n)"
    return Check("open files", status, f"{soft}{hint}")


def _environment() -> str:
    refuse_autoload()
    return "nothing in it lets input files run code"


def _authentication(address: str | None) -> Iterator[Check]:
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    has_token = bool(os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"))
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or _TOKEN_FILE).expanduser()
    if file.exists() and stat.S_IMODE(file.stat().st_mode) & 0o077:
        hint = f"others on this machine may read it; write: chmod 600 {file}"
        yield Check("ray token", "warn", f"{file}: {hint}")
    if address is None:
        if mode == "disabled":
            hint = "whoever reaches its ports runs code as you; unset it"
            yield Check("ray access", "warn", f"RAY_AUTH_MODE=disabled: {hint}")
        else:
            found = "an embedded Ray: it asks for a token and has no dashboard"
            yield Check("ray access", "ok", found)
        return
    url = urlsplit(address if "://" in address else f"ray://{address}")
    is_near = _is_loopback(url.hostname or "")
    if not has_token and not is_near:
        hint = "set RAY_AUTH_TOKEN, and start the cluster with RAY_AUTH_MODE=token"
        yield Check("ray access", "warn", f"{address}: no token in the environment; {hint}")
    elif url.scheme != "https" and not is_near:
        hint = "keep to a private network or a tunnel"
        yield Check("ray access", "warn", f"{address}: the token travels in the clear; {hint}")
    else:
        yield Check("ray access", "ok", address)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "auto", "local")


def _job(job: Job, options: RunOptions) -> Iterator[Check]:
    yield _guarded("sink", lambda: _sink(job))
    yield _guarded("source", lambda: _source(job))
    yield _guarded("model", lambda: _model(job, options))
    yield _guarded("runtime", lambda: _runtime(job))
    if options.address is None:
        yield _guarded("resources", lambda: _resources(job))


def _sink(job: Job) -> str:
    store = Store(job.sink.uri, job.sink.storage_options)
    store.probe(single_writer=job.run.single_writer)
    return f"{store.url('')}: can be written, and creates an object once"


def _source(job: Job) -> str:
    inputs = list_inputs(job.source, max_extent_rows=_MANY_ROWS)
    if not inputs.shards:
        raise JobError(f"source.uri = {job.source.uri}: there are no shards; check uri and format")
    return f"{job.source.uri}: {len(inputs.shards)} shards, {inputs.num_bytes} bytes"


def _model(job: Job, options: RunOptions) -> str:
    spec = resolve_model(
        job.model,
        job.transform,
        allow_import=options.allow_import,
        has_features=bool(job.source.features),
    )
    return f"{spec.name}: weights {(spec.weights_sha256 or 'are its own')[:12]}"


def _runtime(job: Job) -> str:
    from pipeline.runtimes import missing_reason

    model, is_on_gpu = job.model, job.resources.num_gpus > 0
    if model.runtime != AUTO and model.precision != AUTO:
        reason = missing_reason(model.runtime, model.precision, is_on_gpu=is_on_gpu)
        if reason:
            raise JobError(f"model.runtime = {model.runtime!r}: {reason}")
        return f"{model.runtime} {model.precision}"
    usable = [
        f"{runtime} {precision}"
        for runtime, precisions in PRECISIONS.items()
        for precision in precisions
        if model.runtime in (AUTO, runtime) and model.precision in (AUTO, precision)
        if not missing_reason(runtime, precision, is_on_gpu=is_on_gpu)
    ]
    if not usable:
        raise JobError("model.runtime, model.precision: nothing here runs that; see extras")
    return f"to be measured: {', '.join(usable)}"


def _resources(job: Job) -> str:
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cpus = len(os.sched_getaffinity(0))
    found = allocate(job.resources, Hardware(1, float(cpus), float(gpus)))
    return f"{found.max_actors} actors of {found.actor_threads} threads fit this machine"
