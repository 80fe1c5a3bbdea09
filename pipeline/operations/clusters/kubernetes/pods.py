"""The pods of a manifest: the container of a run, its job file, secrets, resources and image."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from pipeline.operations.clusters.kubernetes.asked import DRAIN_S, Asked, JobText
from pipeline.storage.protocols import OBJECT_PROTOCOLS

FOLDER = "/etc/pipeline"
"""Where the job file is, in a pod."""
CONTAINER = "pipeline"
_SPILL_GIB = 40
"""Disk where Ray spills; a node without it gets no such pod."""
_SHARED_SHARE = 0.3
"""Of a pod's memory, for Ray's objects."""
_USER = 1000
"""`ray`, of Ray's images."""

Document = dict[str, Any]
_RUNTIMES = ("onnxruntime", "openvino", "mnn")
_CPU_TORCH = "https://download.pytorch.org/whl/cpu"
_TEXT = """\
# In the folder that has pyproject.toml:  docker build -f Dockerfile -t IMAGE .
FROM rayproject/ray:{ray}-py{python}-{kind}
WORKDIR /home/ray/pipeline
COPY --chown=ray pyproject.toml README.md LICENSE ./
COPY --chown=ray pipeline pipeline
RUN pip install --no-cache-dir {index}'.[{extras}]' 'ray[default]=={ray}'
WORKDIR /home/ray
"""


def config_map(job: JobText) -> Document:
    """Return the document that holds the job file."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{job.name}-job"},
        "data": {"job.yaml": job.text},
    }


def run_command(asked: Asked, date: str | None, ok_exit: str) -> str:
    """Return the command of a run, as a shell reads it.

    Args:
        asked: What the caller asks for.
        date: What stands behind `--date`, quoted; None leaves it out.
        ok_exit: Exit codes that end it with 0.
    """
    words = ["pipeline", "run", f"{FOLDER}/job.yaml", "--ok-exit", ok_exit]
    for prefix in asked.allow_import:
        words += ["--allow-import", prefix]
    return shlex.join(words) + (f" --date {date}" if date else "")


def container(
    name: str, asked: Asked, *, cpus: int, memory_gib: int, has_gpu: bool = False
) -> Document:
    """Return a container of the image; secrets are named in it, never written out."""
    gpu = {"nvidia.com/gpu": 1} if has_gpu else {}
    memory = {"memory": f"{memory_gib}Gi", **gpu}
    requests = {"cpu": cpus, **memory, "ephemeral-storage": f"{_SPILL_GIB}Gi"}
    found: Document = {
        "name": name,
        "image": asked.image,
        "resources": {"requests": requests, "limits": memory},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    if asked.secrets:
        found["envFrom"] = [{"secretRef": {"name": secret}} for secret in asked.secrets]
    return found


def pod(job: JobText, main: Document, *, has_job_file: bool = True) -> Document:
    """Return the spec of a pod around a container.

    Args:
        job: The job.
        main: The container.
        has_job_file: The pod runs the job, and does not only work for it.
    """
    spec: Document = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": DRAIN_S,
        "securityContext": {"runAsNonRoot": True, "runAsUser": _USER, "fsGroup": _USER},
        "containers": [main],
    }
    if has_job_file:
        _mount(spec, "job", FOLDER, {"configMap": {"name": f"{job.name}-job"}})
    return spec


def share_memory(spec: Document, memory_gib: int) -> Document:
    """Give a pod, whose default is 64 MiB, shared memory for Ray's objects."""
    size = f"{int(1024 * _SHARED_SHARE * memory_gib)}Mi"
    kind = {"emptyDir": {"medium": "Memory", "sizeLimit": size}}
    return _mount(spec, "shared-memory", "/dev/shm", kind)  # noqa: S108  # Ray's, not ours


def _mount(spec: Document, name: str, path: str, kind: Document) -> Document:
    spec.setdefault("volumes", []).append({"name": name, **kind})
    mounts = spec["containers"][0].setdefault("volumeMounts", [])
    mounts.append({"name": name, "mountPath": path})
    return spec


def dockerfile(text: JobText) -> str:
    """Return the text of a Dockerfile; the versions of Ray and Python are those of this process."""
    kind = "gpu" if text.wants_gpu else "cpu"
    return _TEXT.format(
        ray=metadata.version("ray"),
        python=f"{sys.version_info.major}{sys.version_info.minor}",
        kind=kind,
        index="" if text.wants_gpu else f"--extra-index-url {_CPU_TORCH} ",
        extras=",".join(sorted(set(_extras(text)))),
    )


def _extras(text: JobText) -> Iterator[str]:
    job = text.job
    yield "submit"
    for uri in (job.source.uri, job.sink.uri, job.model.path, job.model.weights):
        protocol = OBJECT_PROTOCOLS.get((uri or "").partition("://")[0])
        if protocol is not None:
            yield protocol.extra
    if job.sink.table == "delta":
        yield "delta"
    if job.model.runtime in _RUNTIMES:
        yield job.model.runtime
    if job.model.name and not job.model.weights:
        yield "demo"
    if "audio" in {part.input_name for part in job.source.parts.values()}:
        yield "audio"
    if job.model.path:
        yield from ["onnxruntime"] if job.model.path.endswith(".onnx") else ["transformers", "timm"]
