"""Patches that start an embedded Ray without parts that no run uses, and without needless waits."""

from __future__ import annotations

import contextlib
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

from pipeline.core.errors import InfraError
from pipeline.execution import health
from pipeline.process.parent_death import RAYLET, tied_to

_OPTIONAL = "ray.dashboard.optional_deps"
_NO_PORT = -1
_DASHBOARD_AGENT = "--dashboard_agent_command="
_ENVIRONMENT_AGENT = "--runtime_env_agent_command="
_ENVIRONMENT_PORT = re.compile(r"(--runtime[_-]env[_-]agent[_-]port)=\S+")
_PORTS = range(20_000, 32_768)  # below those that Linux gives to connections
_REGISTER_S = 30.0
_LOOK_S = 0.02


@contextlib.contextmanager
def raylet_command(ray: Any, change: Callable[[list[str]], list[str]]) -> Iterator[None]:
    """Start raylets in the body by a changed command."""
    start_process, constants = ray._private.services.start_ray_process, ray._private.ray_constants

    def start(command: list[str], process_type: str, **named: Any) -> Any:
        if process_type == constants.PROCESS_TYPE_RAYLET:
            command = change(command)
        return start_process(command, process_type, **named)

    with patch.object(ray._private.services, "start_ray_process", start):
        yield


@contextlib.contextmanager
def without_dashboard(ray: Any) -> Iterator[None]:
    """Start no dashboard, no monitor of the autoscaler and no monitor of the output of workers.

    `include_dashboard=False` still starts 250 MiB of the dashboard, and waits 0.9 s for it.
    """
    with contextlib.ExitStack() as stack:
        for name in ("start_api_server", "start_monitor", "start_log_monitor"):
            stack.enter_context(patch.object(ray._private.node.Node, name, _start_nothing))
        yield


@contextlib.contextmanager
def without_agents(ray: Any) -> Iterator[None]:
    """Let a raylet wait for neither of its two agents.

    A raylet starts no worker before both agents have written their ports, after 0.8 s of imports,
    and ends when one of them ends. The dashboard agent is of no use here: its ports (none) are
    written in advance, and a process that does nothing takes its place. The other agent makes
    environments for workers that differ from their driver's; it starts together with the workers,
    on a port chosen here. To find out whether it can start the dashboard agent, Ray imports its
    modules for 0.3 s; that is prevented, too.
    """

    def without(command: list[str]) -> list[str]:
        _write_ports(ray, dict(argument.split("=", 1) for argument in command if "=" in argument))
        port = _free_port()
        return [_unwaited(argument, port) for argument in command]

    with _without(_OPTIONAL), raylet_command(ray, without):
        yield


@contextlib.contextmanager
def watched_start(ray: Any) -> Iterator[None]:
    """Tell `health` about each process of Ray as soon as it is started."""
    start_process = ray._private.services.start_ray_process

    def start(command: list[str], process_type: str, **named: Any) -> Any:
        info = start_process(command, process_type, **named)
        health.started(process_type, info)
        return info

    with patch.object(ray._private.services, "start_ray_process", start):
        yield


@contextlib.contextmanager
def node_seen_at_once(ray: Any) -> Iterator[None]:
    """Check every 20 ms for the node; Ray checks once a second."""
    services = ray._private.services
    with patch.object(services, "get_node", _WaitForNode(ray, services.get_node)):
        yield


def _start_nothing(node: Any, **_: Any) -> None:
    node._webui_url = ""  # as Ray sets it without a dashboard


@contextlib.contextmanager
def _without(module: str) -> Iterator[None]:
    """Let imports of a module fail in the body; other threads may import other modules."""
    imported = sys.modules.pop(module, None)
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
        if imported is not None:
            sys.modules[module] = imported


def _write_ports(ray: Any, flags: dict[str, str]) -> None:
    raylet = ray._raylet
    for port in (
        raylet.METRICS_AGENT_PORT_NAME,
        raylet.METRICS_EXPORT_PORT_NAME,
        raylet.DASHBOARD_AGENT_LISTEN_PORT_NAME,
    ):
        raylet.persist_port(flags["--session_dir"], flags["--node_id"], port, _NO_PORT)


def _unwaited(argument: str, port: int) -> str:
    if argument.startswith(_DASHBOARD_AGENT):
        return _DASHBOARD_AGENT + subprocess.list2cmdline(tied_to(RAYLET, []))
    if argument.startswith(_ENVIRONMENT_AGENT) and sys.platform == "linux":
        command = argument.removeprefix(_ENVIRONMENT_AGENT)
        tie = subprocess.list2cmdline(tied_to(RAYLET, []))
        argument = f"{_ENVIRONMENT_AGENT}{tie} {command}"
    # The flag of the raylet, and that in the command of the agent.
    return _ENVIRONMENT_PORT.sub(rf"\g<1>={port}", argument)


def _free_port() -> int:
    """Return a free port outside of the range for outgoing connections."""
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):  # never seeded
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)):
                return port
    raise OSError("no port is free")


class _WaitForNode:
    """Calls the `get_node` of Ray once the node exists; otherwise Ray would sleep a second."""

    def __init__(self, ray: Any, get_node: Callable[[str, str], Any]) -> None:
        self._ray, self._get_node = ray, get_node

    def __call__(self, gcs_address: str, node_id: str) -> Any:
        state = self._ray._private.state.GlobalState()
        options = self._ray._private.services._get_gcs_client_options(gcs_address)
        state._initialize_global_state(options)
        deadline = time.monotonic() + _REGISTER_S
        while node_id not in {node["NodeID"] for node in state.node_table()}:
            if (lost := health.trouble()) is not None:
                raise InfraError(lost)
            if time.monotonic() > deadline:
                break  # the function of Ray reports the problem
            time.sleep(_LOOK_S)
        return self._get_node(gcs_address, node_id)
