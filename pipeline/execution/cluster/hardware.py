"""The hardware of a Ray: nodes, processors, GPUs; and the object store of an embedded Ray."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.core.errors import InfraError
from pipeline.execution.private_names import read
from pipeline.execution.tasks import TaskLost, are_done, give_up, value_if_kept
from pipeline.execution.versions import connected_ray
from pipeline.planning.allocation import Hardware
from pipeline.process.memory import node_bytes

_ACCELERATOR_TYPE = "accelerator_type:"
_ASK_S = 60.0
_ASK = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from pipeline.execution.cluster.hardware import counted_by_ray; "
    "print(json.dumps(counted_by_ray()))"
)
_STORE_SHARE = 0.25
_STORE_MIN_BYTES = 256 << 20
_STORE_MAX_BYTES = 8 << 30


def embedded_store_bytes() -> int:
    """Return the size in bytes of the object store of an embedded Ray."""
    import psutil

    memory = node_bytes()
    shared = psutil.disk_usage("/dev/shm").free if Path("/dev/shm").exists() else memory  # noqa: S108
    wanted = min(_STORE_SHARE * memory, 0.9 * shared, _STORE_MAX_BYTES)
    return int(max(_STORE_MIN_BYTES, wanted))


def hardware_of(ray: Any) -> Hardware:
    """Return the hardware of the cluster, or what its autoscaler may grow it to."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = [node["Resources"] for node in alive]
    limits = read("autoscaler limits")
    hardware = hardware_from(ray.cluster_resources(), nodes, (limits and limits()) or {})
    labels = (frozenset(node.get("Labels", {}).values()) for node in alive)
    return replace(hardware, node_labels=tuple(labels))


def hardware_from(
    total: Mapping[str, float], nodes: Sequence[Mapping[str, float]], limits: Mapping[str, float]
) -> Hardware:
    """Return the hardware of a cluster from the resources that Ray reports.

    Args:
        total: The resources of all nodes together, by Ray's names.
        nodes: The resources of each running node. A node without CPUs, such as some heads, computes
            nothing.
        limits: The limits of the autoscaler; empty without one.
    """
    names = (
        key.partition(_ACCELERATOR_TYPE)[2] for key in total if key.startswith(_ACCELERATOR_TYPE)
    )
    num_running = len(nodes)
    nodes = [node for node in nodes if node.get("CPU")]
    return Hardware(
        num_nodes=max(1, len(nodes)),
        cpus=max(total.get("CPU", 0.0), limits.get("CPU", 0.0)),
        gpus=max(total.get("GPU", 0.0), limits.get("GPU", 0.0)),
        gpu_names=tuple(sorted(names)),
        node_cpus=tuple(node["CPU"] for node in nodes),
        node_gpus=tuple(node.get("GPU", 0.0) for node in nodes),
        num_without_cpus=num_running - len(nodes),
    )


def embedded_hardware() -> Hardware:
    """Return the hardware of an embedded Ray in this process; do not start one."""
    if (ray := connected_ray()) is not None:
        return hardware_of(ray)
    cpus, gpus = ask_ray()
    if gpus is None:
        import torch

        gpus = float(torch.cuda.device_count()) if torch.cuda.is_available() else 0.0
    return this_machine(cpus, gpus)


def ask_ray() -> tuple[float | None, float | None]:
    """Return the processors and GPUs that Ray finds on this machine; None where it does not tell.

    Another process asks: Ray reads the environment when it is imported, and a run that follows in
    this process sets it before.
    """
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        done = subprocess.run(  # noqa: S603  # this very Python
            [sys.executable, "-c", _ASK, json.dumps(sys.path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ASK_S,
            check=True,
        )
        cpus, gpus = json.loads(done.stdout.splitlines()[-1])
        return cpus, gpus
    return None, None


def this_machine(cpus: float | None = None, gpus: float = 0.0) -> Hardware:
    """Return this machine as a single node; with all its processors if `cpus` is None."""
    cpus = float(os.cpu_count() or 1) if cpus is None else cpus
    return Hardware(1, cpus, gpus, node_cpus=(cpus,), node_gpus=(gpus,))


def counted_by_ray() -> tuple[float | None, float | None]:
    """Return the processors and GPUs that Ray finds on this machine; None if unknown."""
    count, managers = read("processors"), read("accelerators")
    cpus = None if count is None else float(count(override_docker_cpu_warning=True))
    if managers is None:
        return cpus, None
    manager = managers("GPU")
    if manager is None:
        return cpus, 0.0
    gpus = manager.get_current_node_num_accelerators()
    visible = manager.get_current_process_visible_accelerator_ids()
    return cpus, float(gpus if visible is None else min(gpus, len(visible)))


def workers() -> list[dict[str, Any]]:
    """Return the live nodes with processors or GPUs, as Ray describes them."""
    import ray

    return [
        node
        for node in ray.nodes()
        if node["Alive"] and any(node["Resources"].get(name) for name in ("CPU", "GPU"))
    ]


def start_on_workers(
    function: Callable[[], Any], nodes: Sequence[Mapping[str, Any]] | None = None
) -> list[Any]:
    """Start a function on each of the nodes, in order; None: on all `workers`."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(function)
    return [
        task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in (workers() if nodes is None else nodes)
    ]


log = logging.getLogger(__name__)
_ANSWER_S = 30.0


def ray_versions() -> list[tuple[str, str]]:
    """Return the host and the Ray version of each computing node that answers."""
    versions = list[tuple[str, str]]()
    nodes = workers()
    asked = start_on_workers(_version, nodes)
    _, late = are_done(asked, _ANSWER_S) if asked else ([], [])
    for node, reference in zip(nodes, asked, strict=True):
        host = node["NodeManagerHostname"]
        if reference in late:
            give_up(reference)
            log.warning("node %s has not answered for %.0f s and is not checked", host, _ANSWER_S)
            continue
        try:
            versions.append((host, value_if_kept(reference)))
        except TaskLost as error:
            log.debug("node %s is not checked: %s", host, error)
    return versions


def require_one_version(versions: Sequence[tuple[str, str]]) -> None:
    """Refuse several versions of Ray in a cluster.

    Args:
        versions: Host and Ray version of each node.

    Raises:
        InfraError: The versions differ.
    """
    hosts = dict[str, list[str]]()
    for host, version in versions:
        hosts.setdefault(version, []).append(host)
    if len(hosts) > 1:
        description = ", ".join(
            f"{version} on {' '.join(hosts[version])}" for version in sorted(hosts)
        )
        raise InfraError(f"nodes run several versions of Ray ({description}): install one")


def _version() -> str:
    from importlib.metadata import version

    return version("ray")
