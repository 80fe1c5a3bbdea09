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
    """Let the `ray.init` of the body start neither the dashboard nor its agent's HTTP server.

    `include_dashboard=False` still starts a process of 250 MiB and waits 0.9 s for it. The server
    tries for 4 s to get a port that another Ray on this machine holds. Ray starts without both
    where their dependencies are not installed; this makes it believe so. And Ray looks only once
    a second whether the node is there.
    """
    services = ray._private.services
    with contextlib.ExitStack() as stack:
        for name, ours in (("start_api_server", _no_server), ("get_node", _WaitForNode)):
            if hasattr(services, name):
                own = getattr(services, name)
                stack.enter_context(patch.object(services, name, ours(ray, own)))
        stack.enter_context(_without(_OPTIONAL))
        yield


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


def _no_server(*_: Any) -> Callable[..., tuple[str, None]]:
    """Return what returns what Ray's own does where no server starts: no URL, no process."""
    return lambda *_, **__: ("", None)


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
