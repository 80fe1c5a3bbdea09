"""Look at the nodes before the first row: is there room for what a run holds?"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import InfraError
from pipeline.execution.cluster.hardware import embedded_store_bytes
from pipeline.execution.cluster.node_facts import answers, this_machine
from pipeline.execution.embedded.ray_folder import base_folder
from pipeline.planning.allocation import Hardware
from pipeline.planning.node_room import Held, NodeFacts, Shortage, find_shortages
from pipeline.runs.context import Settled

log = logging.getLogger(__name__)


def check_nodes(
    settled: Settled, hardware: Hardware, asked: Sequence[Any], *, on_cluster: bool
) -> None:
    """Warn of what nodes have too little of, and refuse a cluster that a run would fail on.

    Args:
        settled: How the plan is carried out.
        hardware: What the Ray in use has.
        asked: What `start_asking` returned, of a cluster.
        on_cluster: The Ray is not one on this machine that this process has started; on that a run
            may do with what there is.

    Raises:
        InfraError: A node has no room for what it would hold, or nodes run several versions.
    """
    nodes = answers(asked) if on_cluster else [embedded_node(hardware)]
    held = Held.of(settled.plan, settled.model.input, settled.allocation)
    found = [*find_shortages(nodes, held)]
    certain = [each for each in found if each.is_certain]
    if on_cluster:
        refuse(certain)
    for each in found if on_cluster else certain:
        log.warning("%s", each.text)


def refuse(certain: Sequence[Shortage]) -> None:
    """Refuse a cluster on which a run would fail.

    Raises:
        InfraError: There is something that it would fail for.
    """
    if certain:
        more = f" (and {len(certain) - 1} more like it)" if len(certain) > 1 else ""
        raise InfraError(f"{certain[0].text}{more}")


def embedded_node(hardware: Hardware) -> NodeFacts:
    """Return this machine as the node of an embedded Ray, which it has or would have."""
    folder: Path = base_folder()
    while not folder.exists():  # it is made when it is needed
        folder = folder.parent
    return this_machine(embedded_store_bytes(), folder, hardware.cpus, hardware.gpus)
