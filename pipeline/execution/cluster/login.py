"""Log in to a cluster without starting anything on it: what `pipeline doctor` does."""

from __future__ import annotations

import logging
import socket

from pipeline.core.errors import InfraError, JobError
from pipeline.execution.environment import refused_token, set_remote
from pipeline.execution.private_names import read
from pipeline.execution.submit.client import connect_job_api, one_line
from pipeline.execution.versions import refused_errors
from pipeline.process.terminal import native_errors_dropped

log = logging.getLogger(__name__)
_REACH_S = 10.0
_TAKES_CONNECTIONS = "its head takes connections; whether it lets us in shows when a run starts"
LOCAL = ("auto", "local")
"""Addresses that Ray finds by itself, and that name no cluster to log in to."""


def log_in(address: str) -> str:
    """Ask a cluster something that it only tells whom it lets in; return what was found.

    Args:
        address: `HOST:PORT` of its head, or `http://HOST:PORT` of its job API.

    Raises:
        JobError: It does not let us in, or the address is wrong.
        InfraError: Nothing answers.
    """
    if address in LOCAL:
        return f"{address}: Ray looks for it when a run starts"
    if "://" in address:
        connect_job_api(address)
        return f"{address}: its job API answers and lets us in"
    return f"{address}: {_ask_head(address)}"


def _ask_head(address: str) -> str:
    set_remote()
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        raise JobError(f"--address {address}: write HOST:PORT of the cluster's head")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except (OSError, OverflowError) as error:
        raise InfraError(f"Ray at {address}: cannot connect: {one_line(error)}") from None
    from ray.exceptions import RaySystemError

    try:
        is_in = is_let_in(address)
    except (OSError, RuntimeError, RaySystemError) as error:
        raise InfraError(f"Ray at {address}: cannot connect: {one_line(error)}") from None
    return "its head answers and lets us in" if is_in else _TAKES_CONNECTIONS


def is_let_in(address: str) -> bool:
    """Ask the head of a cluster whether it takes our token; False if this Ray has no such question.

    Raises:
        JobError: It does not.
        OSError, RuntimeError, RaySystemError: It does not answer.
    """
    client = read("head client")
    if client is None:
        return False
    try:
        with native_errors_dropped():
            client(address=address).check_alive([], timeout=_REACH_S)
    except (AttributeError, TypeError) as error:
        log.debug("this Ray's head is asked another way: %s", error)
        return False
    except refused_errors():
        raise JobError(refused_token(f"Ray at {address}")) from None
    return True
