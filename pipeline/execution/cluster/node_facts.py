"""What the nodes of a cluster have: asked of each by a task that takes a moment."""

from __future__ import annotations

import logging
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.execution.cluster.hardware import start_on_workers, workers
from pipeline.execution.tasks import TaskLost, are_done, give_up, value_if_kept
from pipeline.execution.versions import session_folder
from pipeline.planning.node_room import NodeFacts

log = logging.getLogger(__name__)
_ANSWER_S = 30.0
_SHARED = Path("/dev/shm")  # noqa: S108  # Ray's, not ours


def start_asking() -> list[tuple[dict[str, Any], Any]]:
    """Ask each node that computes; the answers are taken by `answers`."""
    nodes = workers()
    return list(zip(nodes, start_on_workers(_look, nodes), strict=True))


def answers(asked: Sequence[tuple[dict[str, Any], Any]]) -> list[NodeFacts]:
    """Wait for what nodes answer; one that does not, or is gone meanwhile, is left out."""
    found = []
    _, late = are_done([reference for _, reference in asked], _ANSWER_S) if asked else ([], [])
    for node, reference in asked:
        host, resources = node["NodeManagerHostname"], node["Resources"]
        if reference in late:
            give_up(reference)
            log.warning("node %s has not answered for %.0f s, and is not checked", host, _ANSWER_S)
            continue
        try:
            folder, disk_bytes, free_bytes, shared_bytes, version = value_if_kept(reference)
        except TaskLost as error:
            log.debug("node %s is not checked: %s", host, error)
            continue
        found.append(
            NodeFacts(
                host,
                resources.get("CPU", 0.0),
                resources.get("GPU", 0.0),
                int(resources.get("object_store_memory", 0)),
                shared_bytes,
                folder,
                disk_bytes,
                free_bytes,
                version,
            )
        )
    return found


def this_machine(store_bytes: int, folder: Path, cpus: float, gpus: float) -> NodeFacts:
    """Return what this machine has for an embedded Ray.

    Args:
        store_bytes: Of its object store.
        folder: Where it keeps its files; exists.
        cpus: That it counts.
        gpus: That it counts.
    """
    from importlib.metadata import version

    disk = shutil.disk_usage(folder)
    return NodeFacts(
        socket.gethostname(),
        cpus,
        gpus,
        store_bytes,
        _shared_bytes(),
        str(folder),
        disk.total,
        disk.free,
        version("ray"),
    )


def _look() -> tuple[str, int, int, int | None, str]:
    import ray

    folder = session_folder()
    disk = shutil.disk_usage(folder)
    return str(folder), disk.total, disk.free, _shared_bytes(), ray.__version__


def _shared_bytes() -> int | None:
    return shutil.disk_usage(_SHARED).total if _SHARED.exists() else None
