"""The machines that a run may use, as far as the speed of a model depends on them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence

from pipeline.core.cache.cpu import describe_processor
from pipeline.core.versions import package_versions
from pipeline.execution.cluster.hardware import start_on_workers
from pipeline.execution.tasks import TaskLost, are_done, give_up, remote, value_if_kept
from pipeline.inference.runtimes import runtime_versions
from pipeline.planning.allocation import Hardware

_ANSWER_S = 60.0


def describe_machine() -> str:
    """Return the processor of this machine, and the versions of what runs models on it, as JSON."""
    versions = {**package_versions(), **runtime_versions()}
    return json.dumps({"cpu": describe_processor(), "versions": versions}, sort_keys=True)


def machines_of(*, on_cluster: bool) -> tuple[str, ...]:
    """Return the kinds of machines of the Ray in use; none if one of them does not say its kind.

    Args:
        on_cluster: It is not a Ray on this machine that this process has started.
    """
    if not on_cluster:
        return (describe_machine(),)
    asked = start_on_workers(describe_machine)
    done, late = are_done(asked, _ANSWER_S) if asked else ([], [])
    try:
        return () if late else tuple(sorted(set(value_if_kept(done))))
    except TaskLost:  # a node is gone, or has other versions
        return ()


def smallest_gpu(kinds: Sequence[str], share: float) -> str | None:
    """Return the kind of GPU with the least memory, for what fits it fits all; None if all are one.

    Args:
        kinds: Ray's names of the kinds in the cluster.
        share: How much of a GPU an actor takes.
    """
    if len(kinds) < 2 or not share:
        return None
    ask = remote(_gpu_bytes, num_cpus=0, num_gpus=share, max_retries=0)
    asked = {ask.options(accelerator_type=kind).remote(): kind for kind in kinds}
    done, late = are_done([*asked], _ANSWER_S)
    for each in late:  # that kind is not up yet
        give_up(each)
    found = {}
    for each in done:
        with contextlib.suppress(TaskLost):  # it will fail, and be told, where a model is loaded
            found[asked[each]] = value_if_kept(each)
    return least_memory(found)


def least_memory(sizes: Mapping[str, int]) -> str | None:
    """Return the kind of the least memory, of equal ones the first by name; None if there is none.

    Args:
        sizes: Kind of GPU -> bytes.
    """
    return min(sorted(sizes), key=lambda kind: sizes[kind], default=None)


def _gpu_bytes() -> int:
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)


def sizes_of(hardware: Hardware) -> Sequence[float]:
    """Return how many CPUs the nodes have, each number once."""
    return sorted({cpus for cpus in hardware.node_cpus if cpus})
