"""What a Ray has: nodes, processors, GPUs; and how much memory an embedded one gets for objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.execution.private_names import read
from pipeline.plan.allocation import Hardware

_STORE_SHARE = 0.25
_STORE_MIN_BYTES = 256 << 20
_STORE_MAX_BYTES = 8 << 30


def embedded_store_bytes() -> int:
    """Return the size of the object store that an embedded Ray gets."""
    import psutil

    memory = psutil.virtual_memory().total
    shared = psutil.disk_usage("/dev/shm").free if Path("/dev/shm").exists() else memory  # noqa: S108
    wanted = min(_STORE_SHARE * memory, 0.9 * shared, _STORE_MAX_BYTES)
    return int(max(_STORE_MIN_BYTES, wanted))


def hardware_of(ray: Any) -> Hardware:
    """Return what the cluster has, or may grow to where an autoscaler says so."""
    total = ray.cluster_resources()
    limits = _autoscaler_limits()
    names = sorted(
        key.removeprefix("accelerator_type:")
        for key in total
        if key.startswith("accelerator_type:")
    )
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Hardware(
        num_nodes=len(nodes),
        cpus=max(total.get("CPU", 0.0), limits.get("CPU", 0.0)),
        gpus=max(total.get("GPU", 0.0), limits.get("GPU", 0.0)),
        gpu_name=names[0] if names else None,
        node_cpus=tuple(node.get("CPU", 0.0) for node in nodes),
        node_gpus=tuple(node.get("GPU", 0.0) for node in nodes),
    )


def _autoscaler_limits() -> dict[str, float]:
    """Return what the autoscaler may grow the cluster to; empty without one."""
    limits = read("autoscaler limits")
    return dict((limits and limits()) or {})
