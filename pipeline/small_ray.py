"""Starts an embedded Ray without what no run uses, and without waiting longer than it must."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

_OPTIONAL = "ray.dashboard.optional_deps"
_REGISTER_S = 30.0
_LOOK_S = 0.02


@contextlib.contextmanager
def small_ray(ray: Any) -> Iterator[None]:
    """Let the `ray.init` of the body start four processes in place of seven.

    Left out are the dashboard (`include_dashboard=False` still starts 250 MiB of it, and waits
    0.9 s), the autoscaler's monitor and the one that copies what workers print. The HTTP server of
    the dashboard's agent tries for 4 s to get a port that another Ray on this machine holds; Ray
    starts without it where what it imports is not installed, and this makes it believe so. And Ray
    looks only once a second whether the node is there.
    """
    private = ray._private
    with contextlib.ExitStack() as stack:
        for name in ("start_api_server", "start_monitor", "start_log_monitor"):
            stack.enter_context(patch.object(private.node.Node, name, _start_nothing))
        own = private.services.get_node
        stack.enter_context(patch.object(private.services, "get_node", _WaitForNode(ray, own)))
        stack.enter_context(_without(_OPTIONAL))
        yield


def _start_nothing(node: Any, **_: Any) -> None:
    node._webui_url = ""  # what Ray sets where no dashboard starts


@contextlib.contextmanager
def _without(module: str) -> Iterator[None]:
    """Let imports of a module fail; other threads may import others meanwhile."""
    imported = sys.modules.pop(module, None)
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
        if imported is not None:
            sys.modules[module] = imported


class _WaitForNode:
    """Ray's own `get_node`, called as soon as the node is there: it sleeps a second, else."""

    def __init__(self, ray: Any, own: Callable[[str, str], Any]) -> None:
        self._ray, self._own = ray, own

    def __call__(self, gcs_address: str, node_id: str) -> Any:
        state = self._ray._private.state.GlobalState()
        options = self._ray._private.services._get_gcs_client_options(gcs_address)
        state._initialize_global_state(options)
        deadline = time.monotonic() + _REGISTER_S
        while node_id not in {node["NodeID"] for node in state.node_table()}:
            if time.monotonic() > deadline:
                break  # Ray's own says what is wrong
            time.sleep(_LOOK_S)
        return self._own(gcs_address, node_id)
