"""Patches of the driver: what an embedded Ray would start actors for, its signals and its output.

Ray Data asks an actor what it may use of the cluster, and starts nothing before that actor runs; it
tells another, for the dashboard, how far it is; and a third keeps on which node each actor is. Each
is a process that first imports Ray Data. Where the cluster is one node that only this driver uses,
a call does the same.
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
    """Ask no actor what Ray Data may use of the cluster."""
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as module

    coordinator = _Called(_make_coordinator(ray, module), ray.put)
    with patch.object(module, "get_or_create_autoscaling_coordinator", lambda: coordinator):
        yield


@contextlib.contextmanager
def locations_in_driver(ray: Any) -> Iterator[None]:
    """Ask no actor on which node each actor of a pool is."""
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
    """Tell no actor, for the dashboard that an embedded Ray has not, how far an execution is."""
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
    """Record no metrics for the same dashboard; every look of Ray Data's loop records dozens."""
    from ray.util import metrics

    with patch.object(metrics.Metric, "_record", _do_nothing):
        yield


def _make_coordinator(ray: Any, module: Any) -> Any:
    class Coordinator(module._AutoscalingCoordinatorActor):  # type: ignore[misc]
        # The node stays as it is: nothing has to be looked at again from time to time, and a
        # thread that does so would outlive the run.
        TICK_INTERVAL_S = _NEVER_S
        _tick_thread = _NeverStarted()

    nodes = ray.nodes()
    return Coordinator(send_resources_request=_do_nothing, get_cluster_nodes=lambda: nodes)


def _all_at(node_id: str, actors: Iterable[str]) -> dict[str, str]:
    return dict.fromkeys(actors, node_id)


def _do_nothing(*_: Any, **__: Any) -> None:
    pass


class _Called:
    """An object in the place of an actor: `handle.method.remote(...)` calls it here."""

    def __init__(self, target: Any, put: Callable[[Any], Any]) -> None:
        self._target, self._put = target, put

    def __getattr__(self, name: str) -> Any:
        return _Method(getattr(self._target, name), self._put)


class _Method:
    def __init__(self, method: Callable[..., Any], put: Callable[[Any], Any]) -> None:
        self._method, self._put = method, put

    def remote(self, *arguments: Any, **named: Any) -> Any:
        """Call it; what it returns, as a reference."""
        return self._put(self._method(*arguments, **named))


class _NeverStarted:
    """An attribute that is set to a thread, and gives one whose `start` does nothing."""

    def __get__(self, owner: Any, owner_type: type) -> _NeverStarted:
        return self

    def __set__(self, owner: Any, thread: Any) -> None:
        """Forget the thread."""

    def start(self) -> None:
        """Start nothing."""


class _OneNode:
    """Ray Data's tracker of where actors are, for one node; the actors get it too."""

    def __init__(self, node_id: str, put: Callable[[Any], Any]) -> None:
        self.get_actor_locations = _Method(partial(_all_at, node_id), put)
        self.update_actor_location = _Method(_do_nothing, _do_nothing)


@contextlib.contextmanager
def talk_to_log(ray: Any) -> Iterator[None]:
    """Keep what Ray's processes tell their driver out of its output: "20 retries remaining"."""
    with patch.object(ray._private.worker, "print_to_stdstream", _to_log):
        yield


def _to_log(message: dict[str, Any], *_: Any, **__: Any) -> None:
    log.debug("Ray says: %s", " ".join(" ".join(message.get("lines", ())).split()))


@contextlib.contextmanager
def keep_sigterm_handler(ray: Any) -> Iterator[None]:
    """Keep our handler of SIGTERM: Ray's ends the process with another exit code."""
    with patch.object(ray._private.utils, "set_sigterm_handler", _do_nothing):
        yield
