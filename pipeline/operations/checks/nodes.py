"""What `pipeline doctor` sees of the nodes that a run would use."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.core.errors import InfraError
from pipeline.execution.cluster.connect import connect
from pipeline.execution.cluster.node_facts import answers, start_asking
from pipeline.operations.checks.machine import Finding, guarded
from pipeline.planning.allocation import Hardware
from pipeline.planning.node_room import Held, NodeFacts, find_shortages, gib
from pipeline.runs.preparing.node_checks import embedded_node, refuse

HeldOn = Callable[[Hardware], Held | None]
"""What a run would hold on a cluster; None if that is unknown."""


def look_at_cluster(address: str, held_on: HeldOn | None) -> Finding:
    """Ask the nodes of a cluster; a task runs on each for a moment.

    Args:
        address: `HOST:PORT` of its head.
        held_on: What the job would hold there; None: no job is known.
    """
    warnings: list[str] = []

    def look() -> str:
        with connect(address) as (hardware, _, _):
            nodes = answers(start_asking())
            if not nodes:
                raise InfraError(f"Ray at {address}: no node that computes has answered")
            held = held_on(hardware) if held_on else None
        found = [*find_shortages(nodes, held)]
        refuse([each for each in found if each.is_certain])
        warnings.extend(each.text for each in found)
        return _told(nodes)

    return _warned(guarded("nodes", look), warnings)


def look_at_this_node(hardware: Hardware, held_on: HeldOn) -> Finding:
    """Compare this machine with what an embedded Ray would hold here."""
    warnings: list[str] = []

    def look() -> str:
        node = embedded_node(hardware)
        found = find_shortages([node], held_on(hardware))
        warnings.extend(each.text for each in found if each.is_certain)
        return _told([node])

    return _warned(guarded("nodes", look), warnings)


def _warned(finding: Finding, warnings: Sequence[str]) -> Finding:
    return Finding("nodes", "warn", "; ".join(warnings)) if warnings else finding


def _told(nodes: Sequence[NodeFacts]) -> str:
    stores = [node.store_bytes for node in nodes]
    free = [node.free_bytes for node in nodes]
    count = "this machine" if len(nodes) == 1 else f"{len(nodes)} nodes"
    return (
        f"{count}, Ray {nodes[0].ray_version}: object store from {gib(min(stores))}, "
        f"disk where it spills from {gib(min(free))} free"
    )
