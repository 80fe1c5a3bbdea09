"""Change the command by which Ray starts a raylet: what several patches share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch


@contextlib.contextmanager
def raylet_command(ray: Any, change: Callable[[list[str]], list[str]]) -> Iterator[None]:
    """Let a raylet be started by a changed command in the body."""
    own, raylet = ray._private.services.start_ray_process, ray._private.ray_constants

    def start(command: list[str], process_type: str, **named: Any) -> Any:
        if process_type == raylet.PROCESS_TYPE_RAYLET:
            command = change(command)
        return own(command, process_type, **named)

    with patch.object(ray._private.services, "start_ray_process", start):
        yield
