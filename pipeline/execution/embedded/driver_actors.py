"""Patches of the driver: no actors of Ray Data besides ours, and our own signals and output.

Ray Data asks an actor what it may use of the cluster, and starts nothing before that actor runs; it
reports progress to another, for the dashboard; a third keeps the node of each actor. Each is a
process that first imports Ray Data. On a cluster of one node that only this driver uses, a call in
the driver gives the same answers.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

log = logging.getLogger(__name__)

_NEVER_S = 1e9


@contextlib.contextmanager
def coordinator_in_driver(ray: Any) -> Iterator[None]:
    """Ask the driver, not an actor, what Ray Data may use of the cluster."""
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as module

    coordinator = _Called(_make_coordinator(ray, module), ray.put)
    with patch.object(module, "get_or_create_autoscaling_coordinator", lambda: coordinator):
        yield


@contextlib.contextmanager
def locations_in_driver(ray: Any) -> Iterator[None]:
    """Ask the driver, not an actor, on which node each actor of a pool is."""
    from ray.data._internal.execution.operators import actor_pool_map_operator
    from ray.data._internal.utils import cached_ray_internals

    tracker = _OneNode(ray.get_runtime_context().get_node_id(), ray.put)
    name = "get_or_create_actor_location_tracker"
    with (
        patch.object(actor_pool_map_operator, name, lambda: tracker),
        patch.object(cached_ray_internals, name, lambda: tracker),
    ):
        yield


@contextlib.contextmanager
def without_statistics(ray: Any) -> Iterator[None]:
    """Report no progress to an actor: an embedded Ray has no dashboard to show it."""
    from ray.data._internal import stats

    with patch.multiple(
        stats._StatsManager,
        gen_dataset_id_from_stats_actor=staticmethod(lambda: uuid.uuid4().hex),
        register_dataset_to_stats_actor=staticmethod(_do_nothing),
        update_execution_metrics=staticmethod(_do_nothing),
        update_iteration_metrics=staticmethod(_do_nothing),
    ):
        yield


@contextlib.contextmanager
def without_metrics(ray: Any) -> Iterator[None]:
    """Record no metrics for the dashboard; each pass of Ray Data's loop records dozens."""
    from ray.util import metrics

    with patch.object(metrics.Metric, "_record", _do_nothing):
        yield


def _make_coordinator(ray: Any, module: Any) -> Any:
    class Coordinator(module._AutoscalingCoordinatorActor):  # type: ignore[misc]
        # The node does not change, so nothing has to be checked again, and the thread that does it
        # would outlive the run.
        TICK_INTERVAL_S = _NEVER_S
        _tick_thread = _NeverStarted()

    nodes = ray.nodes()
    return Coordinator(send_resources_request=_do_nothing, get_cluster_nodes=lambda: nodes)


def _all_at(node_id: str, actors: Iterable[str]) -> dict[str, str]:
    return dict.fromkeys(actors, node_id)


def _do_nothing(*_: Any, **__: Any) -> None:
    pass


class _Called:
    """A stand-in for an actor: `handle.method.remote(...)` calls the object in this process."""

    def __init__(self, target: Any, put: Callable[[Any], Any]) -> None:
        self._target, self._put = target, put

    def __getattr__(self, name: str) -> Any:
        return _Method(getattr(self._target, name), self._put)


class _Method:
    def __init__(self, method: Callable[..., Any], put: Callable[[Any], Any]) -> None:
        self._method, self._put = method, put

    def remote(self, *arguments: Any, **named: Any) -> Any:
        """Call the method; return a reference to its result."""
        return self._put(self._method(*arguments, **named))


class _NeverStarted:
    """An attribute that ignores the thread it is set to; its `start` does nothing."""

    def __get__(self, owner: Any, owner_type: type) -> _NeverStarted:
        return self

    def __set__(self, owner: Any, thread: Any) -> None:
        """Ignore the thread."""

    def start(self) -> None:
        """Do nothing."""


class _OneNode:
    """Ray Data's tracker of the nodes of actors, for a single node; the actors get it, too."""

    def __init__(self, node_id: str, put: Callable[[Any], Any]) -> None:
        self.get_actor_locations = _Method(partial(_all_at, node_id), put)
        self.update_actor_location = _Method(_do_nothing, _do_nothing)


@contextlib.contextmanager
def talk_to_log(ray: Any) -> Iterator[None]:
    """Keep messages of Ray's processes, such as "20 retries remaining", out of our output."""
    with patch.object(ray._private.worker, "print_to_stdstream", _to_log):
        yield


def _to_log(message: dict[str, Any], *_: Any, **__: Any) -> None:
    log.debug("Ray says: %s", " ".join(" ".join(message.get("lines", ())).split()))


@contextlib.contextmanager
def keep_sigterm_handler(ray: Any) -> Iterator[None]:
    """Keep our handler of SIGTERM: that of Ray ends the process with another exit code."""
    with patch.object(ray._private.utils, "set_sigterm_handler", _do_nothing):
        yield
