"""A real Ray of several nodes on this machine, whose nodes and workers can be killed.

Every node has its own raylet, object store and (unless they share it) temporary folder, as on a
machine of its own. The head does no work: who loses it loses the cluster. To be made in a process
that has not used Ray.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import time
from typing import Any

import psutil

from support.runs.checkout import PYTHONPATH
from support.servers.ports import free_ports

_STORE_BYTES = 128 << 20
_WORKER = "ray::"
_IDLE = "IDLE"
_CHILD = "pipeline.execution.isolation.child_process"
PREEMPTED = 2
"""DRAIN_NODE_REASON_PREEMPTION: the node goes, whatever runs on it."""


class RayNodes:
    """Starts a head and some nodes on entering; on leaving ends them, and nothing else."""

    def __init__(
        self, num_nodes: int, *, cpus_per_node: int = 1, share_folder: bool = False
    ) -> None:
        """Take the number of nodes that work, and the CPUs of each."""
        self._num_nodes, self._cpus, self._share = num_nodes, cpus_per_node, share_folder
        # Ray reads it once in a process, so all clusters of this one have the same.
        self._token = os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        self._num_started = 0
        self.nodes: list[Any] = []
        """Those that work, oldest first."""

    def __enter__(self) -> RayNodes:
        # Sockets lie in there, and their paths may have 107 characters.
        self._folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
        os.mkdir(f"{self._folder}/ray")  # Ray notes the address there
        os.environ.update(
            RAY_TMPDIR=self._folder, RAY_AUTH_MODE="token", RAY_USAGE_STATS_ENABLED="0"
        )
        os.environ["PYTHONPATH"] = PYTHONPATH  # workers find the tests' models
        os.environ.pop("RAY_ADDRESS", None)
        from ray.cluster_utils import Cluster

        self._cluster = Cluster()
        try:
            self._add(num_cpus=0, include_dashboard=False)
            for _ in range(self._num_nodes):
                self.add()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in list(self.nodes):
            self.kill(node)
        self._cluster.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to run here."""
        return {
            "RAY_ADDRESS": self._cluster.address,
            "RAY_AUTH_TOKEN": self._token,
            "RAY_TMPDIR": self._folder,
        }

    def add(self) -> None:
        """Add a node that works, and wait until the head knows it."""
        self.nodes.append(self._add(num_cpus=self._cpus))

    def _add(self, **options: Any) -> Any:
        self._num_started += 1
        folder = f"{self._folder}/{0 if self._share else self._num_started}"
        [port] = free_ports(1)
        return self._cluster.add_node(
            temp_dir=folder,
            object_store_memory=_STORE_BYTES,
            dashboard_agent_listen_port=port,
            **options,
        )

    def kill(self, node: Any) -> None:
        """Kill a node as a machine that loses its power: its raylet, and all that it started."""
        for process in _family(node):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def drain(self, node: Any, within_s: float) -> None:
        """Tell the head that a node will be taken away, as a cloud's notice of preemption does."""
        from ray._raylet import GcsClient

        deadline_ms = int(1000 * (time.time() + within_s))
        client = GcsClient(address=self._cluster.address)
        accepted, why_not = client.drain_node(node.node_id, PREEMPTED, "preempted", deadline_ms)
        if not accepted:
            raise RuntimeError(f"the node does not drain: {why_not}")

    def workers(self) -> dict[str, list[psutil.Process]]:
        """What works on the nodes, by kind: children of ours, and Ray's workers by their titles.

        Idle workers are there only where there is nothing else. Not Ray's agents, without which a
        raylet ends itself.
        """
        by_title: dict[str, list[psutil.Process]] = {}
        for node in self.nodes:
            for process in _family(node)[1:]:
                title = _title(process)
                if title and not title.endswith("Agent"):
                    by_title.setdefault(title, []).append(process)
        return {title: these for title, these in by_title.items() if title != _IDLE} or by_title


def _title(process: psutil.Process) -> str:
    """Ray calls a worker after its class, or its task, and what it does now."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        line = " ".join(process.cmdline())
        if line.startswith(_WORKER):
            return line.removeprefix(_WORKER).split("(")[0].split(".")[0].strip()
        if _CHILD in line:
            return "child"
    return ""


def _family(node: Any) -> list[psutil.Process]:
    """The raylet of a node first, so that it starts no process again, then its descendants."""
    try:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        return [raylet, *raylet.children(recursive=True)]
    except (KeyError, psutil.NoSuchProcess):  # it has ended
        return []
