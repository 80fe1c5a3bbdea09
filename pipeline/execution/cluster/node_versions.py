"""Which Ray the nodes of a cluster run: asked of each by a task that takes a moment."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pipeline.core.errors import InfraError
from pipeline.execution.cluster.hardware import start_on_workers, workers
from pipeline.execution.tasks import TaskLost, are_done, give_up, value_if_kept

log = logging.getLogger(__name__)
_ANSWER_S = 30.0


def ray_versions() -> list[tuple[str, str]]:
    """Return the host and the Ray of each node that computes; without those that do not answer."""
    found = list[tuple[str, str]]()
    nodes = workers()
    asked = start_on_workers(_version, nodes)
    _, late = are_done(asked, _ANSWER_S) if asked else ([], [])
    for node, reference in zip(nodes, asked, strict=True):
        host = node["NodeManagerHostname"]
        if reference in late:
            give_up(reference)
            log.warning("node %s has not answered for %.0f s, and is not checked", host, _ANSWER_S)
            continue
        try:
            found.append((host, value_if_kept(reference)))
        except TaskLost as error:
            log.debug("node %s is not checked: %s", host, error)
    return found


def require_one_version(versions: Sequence[tuple[str, str]]) -> None:
    """Refuse nodes, host and version of each, that run several versions of Ray.

    Raises:
        InfraError: They do.
    """
    hosts = dict[str, list[str]]()
    for host, version in versions:
        hosts.setdefault(version, []).append(host)
    if len(hosts) > 1:
        found = ", ".join(f"{version} on {' '.join(hosts[version])}" for version in sorted(hosts))
        raise InfraError(f"nodes run several versions of Ray ({found}): install one")


def _version() -> str:
    from importlib.metadata import version

    return version("ray")
