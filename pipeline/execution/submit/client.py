"""The client of a cluster's job API: connect to it, and say what is wrong with an address."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from pipeline.core.errors import InfraError, JobError
from pipeline.core.printable import clean_message
from pipeline.execution.auth_token import refused_token, send_token
from pipeline.execution.versions import refused_errors, require_supported

log = logging.getLogger(__name__)

_CONNECT_S, _ANSWER_S = 10.0, 60.0
_OK = 200
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private",
)


def connect_job_api(address: str) -> Any:
    """Return a client of the job API that has seen the cluster answer.

    Raises:
        JobError: The address or the token is wrong, the extra `submit` is missing, or the
            cluster's Ray is too old.
        InfraError: Nothing answers, or not a job API.
    """
    shown = shown_address(address)
    has_token = send_token()
    _warn_if_open(address, has_token=has_token)
    try:
        import aiohttp  # noqa: F401  # Ray's client imports it only if it is installed
        from ray.job_submission import JobSubmissionClient
    except ImportError:
        raise JobError(
            "submit needs the extra: pip install 'batch-inference-pipeline[submit]'"
        ) from None
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)

    class Client(JobSubmissionClient):  # type: ignore[misc]  # Ray is not typed
        """Ray's client, which sets no time limits, with limits on every request."""

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            limits = (_CONNECT_S, _ANSWER_S)
            answer = super()._do_request(method, endpoint, timeout=limits, **options)
            if endpoint == "/api/version" and answer.status_code == _OK:
                require_supported(f"{shown} runs", answer.json().get("ray_version", ""))
            return answer

    try:
        with _sole_address(address):
            return Client(address)
    except refused_errors():
        raise JobError(refused_token(shown)) from None
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise InfraError(f"{shown}: no Ray job API answers: {one_line(_root(error))}") from None


def shown_address(address: str) -> str:
    """Return the address without user, password and path.

    Raises:
        JobError: It is no HTTP address.
    """
    try:
        parts = urlsplit(address)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        parts, port = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        is_head = "://" not in address
        what = "that is the address of a cluster's head, for `pipeline run`" if is_head else "wrong"
        raise JobError(
            f"--address {address}: {what}; submit wants that of its job API, http://HOST:8265"
        )
    return f"{parts.scheme}://{parts.hostname}{port}"


def _warn_if_open(address: str, *, has_token: bool) -> None:
    parts = urlsplit(address)
    if parts.scheme == "http" and not has_token and not is_loopback(parts.hostname or ""):
        log.warning(
            "%s: neither encrypted nor with a token (RAY_AUTH_TOKEN): who reaches this port can "
            "run anything on the cluster",
            shown_address(address),
        )


def is_loopback(host: str) -> bool:
    """Tell whether a host, by name or address, is this machine; no name is looked up."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextlib.contextmanager
def _sole_address(address: str) -> Iterator[None]:
    """Let the body's client use this address: Ray prefers two environment variables to it."""
    name = "RAY_API_SERVER_ADDRESS"
    saved = os.environ.get(name)
    os.environ[name] = address
    try:
        yield
    finally:
        del os.environ[name]
        if saved is not None:
            os.environ[name] = saved


def _root(error: BaseException) -> BaseException:
    """Return what the HTTP client met first: "connection refused" without three wrappers."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def one_line(reason: object) -> str:
    """Return what went wrong as one printable line."""
    kind = f"{type(reason).__name__}: " if isinstance(reason, ValueError | KeyError) else ""
    return clean_message(f"{kind}{reason}")
