"""The registry of patches: each replaces private names of Ray, and says what it saves.

Every patch names what it touches. All of these names are looked up before it is applied; if one is
missing or has changed, there is a debug line and Ray works as it does by itself: slower, with the
same results. `PIPELINE_PLAIN_RAY=1` applies none. Only a Ray that a run has started itself is
patched; the few patches marked `on_cluster` concern only the signals and output of this process,
and apply on a cluster, too.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from pipeline.core.environment import PLAIN_RAY
from pipeline.execution import health
from pipeline.execution.embedded import driver_actors, minimal_head, short_loop
from pipeline.execution.embedded.forkserver import fork_from
from pipeline.execution.private_names import NameMissing, is_plain, look_up

log = logging.getLogger(__name__)
_LEFT_OUT = "%s is left out, which costs %s: %s"
BROKEN = (AttributeError, ImportError, KeyError, TypeError)
"""Errors of a patch if Ray uses a name for something else than when the patch was written."""


@dataclass(frozen=True)
class Patch:
    """One optional change of Ray."""

    name: str
    touches: tuple[str, ...]
    """Private names, as `look_up` takes them."""
    saves: str
    """The cost of not applying it, on a small machine."""
    apply: Callable[..., AbstractContextManager[Any]]
    """Takes the module of Ray, and applies the patch for the body."""
    on_cluster: bool = False
    """It changes only the signals and output of this process."""

    def missing(self) -> str | None:
        """Return the first name that this Ray lacks; None if it has all."""
        for name in self.touches:
            try:
                look_up(name)
            except NameMissing:
                return name
        return None


_SERVICES = "ray._private.services"
_START = f"{_SERVICES}:start_ray_process(command, process_type)"
_WORKER = "ray._private.worker"
_OPERATORS = "ray.data._internal.execution.operators"
_COORDINATOR = "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator"
_STATS = "ray.data._internal.stats:_StatsManager"
_PORTS = (
    "ray._raylet:METRICS_AGENT_PORT_NAME",
    "ray._raylet:METRICS_EXPORT_PORT_NAME",
    "ray._raylet:DASHBOARD_AGENT_LISTEN_PORT_NAME",
)

# While Ray starts.
TALK = Patch(
    "talk",
    (f"{_WORKER}:print_to_stdstream(data)",),
    "lines of Ray's processes in the output",
    driver_actors.talk_to_log,
    on_cluster=True,
)
SIGTERM = Patch(
    "sigterm",
    ("ray._private.utils:set_sigterm_handler(sigterm_handler)",),
    "exit code 6 of a stop while Ray starts",
    driver_actors.keep_sigterm_handler,
    on_cluster=True,
)
AGENTS = Patch(
    "no agents awaited",
    (
        _START,
        "ray._private.ray_constants:PROCESS_TYPE_RAYLET",
        "ray._raylet:persist_port",
        *_PORTS,
        "ray.dashboard.optional_deps:",
    ),
    "1.1 s, and Ray's agents outlive a driver that is killed by up to a minute",
    minimal_head.without_agents,
)
START = (
    Patch(
        "no dashboard",
        (
            "ray._private.node:Node.start_api_server",
            "ray._private.node:Node.start_monitor",
            "ray._private.node:Node.start_log_monitor",
        ),
        "1.9 s and 250 MiB",
        minimal_head.without_dashboard,
    ),
    AGENTS,
    Patch(
        "node seen at once",
        (
            f"{_SERVICES}:get_node(gcs_address, node_id)",
            f"{_SERVICES}:_get_gcs_client_options",
            "ray._private.state:GlobalState._initialize_global_state",
            "ray._private.state:GlobalState.node_table",
        ),
        "up to 1 s",
        minimal_head.node_seen_at_once,
    ),
    Patch("processes watched", (_START,), "a lost Ray while it starts", minimal_head.watched_start),
)
FORK = Patch(
    "forked workers",
    (
        _START,
        f"{_SERVICES}:ProcessInfo._fields",
        f"{_WORKER}:_global_node",
        "ray._private.ray_constants:PROCESS_TYPE_RAYLET",
        "ray._private.workers.default_worker:",
        "ray.actor:ActorClassID",
        "ray._raylet:ActorClassID.from_random",
        "ray._raylet:Config.initialize",
        "ray._raylet:AuthenticationTokenLoader.instance",
        "ray.data._internal.issue_detection:",
    ),
    "1.5 to 2 s until the first slice",
    fork_from,
)
# While runs are in progress.
DATA = (
    Patch(
        "coordinator in driver",
        (
            f"{_COORDINATOR}:get_or_create_autoscaling_coordinator",
            f"{_COORDINATOR}:_AutoscalingCoordinatorActor"
            "(send_resources_request, get_cluster_nodes)",
            f"{_COORDINATOR}:_AutoscalingCoordinatorActor.TICK_INTERVAL_S",
        ),
        "1.2 s",
        driver_actors.coordinator_in_driver,
    ),
    Patch(
        "actor locations in driver",
        (
            f"{_OPERATORS}.actor_pool_map_operator:get_or_create_actor_location_tracker",
            "ray.data._internal.utils.cached_ray_internals:get_or_create_actor_location_tracker",
        ),
        "0.7 s of the second actor",
        driver_actors.locations_in_driver,
    ),
    Patch(
        "no statistics actor",
        (
            f"{_STATS}.gen_dataset_id_from_stats_actor",
            f"{_STATS}.register_dataset_to_stats_actor",
            f"{_STATS}.update_execution_metrics",
            f"{_STATS}.update_iteration_metrics",
        ),
        "1.2 s",
        driver_actors.without_statistics,
    ),
    Patch(
        "no metrics",
        ("ray.util.metrics:Metric._record",),
        "7% of the driver's time",
        driver_actors.without_metrics,
    ),
    Patch(
        "short looks",
        (
            "ray.data._internal.execution.streaming_executor_state"
            ":WAIT_FOR_TASK_COMPLETION_TIMEOUT_S",
        ),
        "10% of a run whose tasks take milliseconds",
        short_loop.short_looks,
    ),
    Patch(
        "no block statistics",
        (f"{_OPERATORS}.map_operator:to_stats",),
        "1.5 KiB of the driver's memory for each slice",
        short_loop.without_block_statistics,
    ),
    Patch(
        "read ahead",
        (
            "ray.data._internal.execution.backpressure_policy:ENABLED_BACKPRESSURE_POLICIES",
            "ray.data._internal.execution.backpressure_policy.backpressure_policy"
            ":BackpressurePolicy.can_add_input(op)",
            "ray.data._internal.execution.backpressure_policy.backpressure_policy"
            ":BackpressurePolicy.max_task_output_bytes_to_read(op)",
        ),
        "250 MiB of the driver's memory where slices are small",
        short_loop.enable_read_ahead,
    ),
)
# While Ray ends.
END = Patch(
    "kill at the end",
    (f"{_WORKER}:_global_node", "ray._private.node:Node.destroy_external_storage"),
    "2 s",
    health.node_left_alone,
)

PATCHES = (TALK, SIGTERM, *START, FORK, *DATA, END)


def is_usable(patch: Patch, *, on_cluster: bool = False) -> bool:
    """Tell whether a patch can be applied to this Ray; log a missing name at debug level."""
    if is_plain() or (on_cluster and not patch.on_cluster):
        return False
    name = patch.missing()
    if name is not None:
        log.debug(
            "%s is left out, which costs %s: this Ray has no %s", patch.name, patch.saves, name
        )
    return name is None


@contextlib.contextmanager
def applied(*patches: Patch, ray: Any, on_cluster: bool = False, **named: Any) -> Iterator[None]:
    """Apply the usable patches for the body."""
    with contextlib.ExitStack() as stack:
        for patch in patches:
            if not is_usable(patch, on_cluster=on_cluster):
                continue
            try:
                stack.enter_context(patch.apply(ray, **named))
            except BROKEN as error:
                log.debug(_LEFT_OUT, patch.name, patch.saves, f"{type(error).__name__}: {error}")
        yield


def describe() -> str:
    """List the patches that apply to a Ray started here, and what the others lack."""
    if is_plain():
        return f"none is applied: {PLAIN_RAY} is set"
    missing = {patch.name: name for patch in PATCHES if (name := patch.missing()) is not None}
    active = [patch.name for patch in PATCHES if patch.name not in missing]
    description = f"active: {', '.join(active) or 'none'}"
    lacking = "; ".join(f"{name} (no {private})" for name, private in missing.items())
    return f"{description}; left out, which costs time only: {lacking}" if lacking else description
