"""Log in to a cluster without starting anything on it: what `pipeline doctor` does."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

from pipeline.core.errors import InfraError, JobError
from pipeline.execution.auth_token import send_token
from pipeline.execution.environment import set_remote
from pipeline.execution.submit.client import connect, one_line, refused_token

_REACH_S = 10.0
_LOCAL = ("auto", "local")
"""Addresses that Ray finds by itself, and that name no cluster to log in to."""


def log_in(address: str) -> str:
    """Ask a cluster something that it only tells whom it lets in; return what was found.

    Args:
        address: `HOST:PORT` of its head, or `http://HOST:PORT` of its job API.

    Raises:
        JobError: It does not let us in, or the address is wrong.
        InfraError: Nothing answers.
    """
    if address in _LOCAL:
        return f"{address}: Ray looks for it when a run starts"
    if "://" in address:
        connect(address)
        return f"{address}: its job API answers and lets us in"
    _ask_head(address)
    return f"{address}: its head answers and lets us in"


def _ask_head(address: str) -> None:
    set_remote()
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        raise JobError(f"--address {address}: write HOST:PORT of the cluster's head")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except (OSError, OverflowError) as error:
        raise InfraError(f"Ray at {address}: cannot connect: {one_line(error)}") from None
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # it is compiled
    from ray.exceptions import AuthenticationError, RaySystemError

    try:
        with _quiet_core():
            GcsClient(address=address).check_alive([], timeout=_REACH_S)
    except AuthenticationError:
        raise JobError(refused_token(address, has_token=send_token())) from None
    except (OSError, RuntimeError, RaySystemError) as error:
        raise InfraError(f"Ray at {address}: cannot connect: {one_line(error)}") from None


@contextlib.contextmanager
def _quiet_core() -> Iterator[None]:
    """Keep what Ray's C++ core writes to descriptor 2 away: the error says it, too."""
    saved = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
