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
from pipeline.execution.environment import authorization, refused_token, send_token
from pipeline.execution.submit.retrying import one_line, until_answered
from pipeline.execution.versions import note_other_version, refused_errors, require_supported

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

    Its requests are sent again while that may help, with the token as it is by then; where it does
    not, they raise InfraError, and RuntimeError where the cluster refuses what they ask.

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
        """Ray's client, which sets no time limits and keeps its first token, with both."""

        is_known = False
        """The cluster has answered before."""
        where = shown

        def renew_token(self) -> None:
            """Send the token that is in its file now: it may expire while a job runs."""
            self._headers.update(authorization())

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            def ask() -> Any:
                self.renew_token()
                limits = (_CONNECT_S, _ANSWER_S)
                return ask_once(method, endpoint, timeout=limits, **options)

            ask_once = super()._do_request
            answer = until_answered(ask, shown, is_known=self.is_known)
            if endpoint == "/api/version" and answer.status_code == _OK:
                version = answer.json().get("ray_version", "")
                require_supported(f"{shown} runs", version)
                if not self.is_known:
                    note_other_version(shown, version)
                self.is_known = True
            return answer

    try:
        with _sole_address(address):
            return Client(address, headers=authorization())
    except refused_errors():
        raise JobError(refused_token(shown)) from None
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise InfraError(f"{shown}: no Ray job API answers: {one_line(error)}") from None


@contextlib.contextmanager
def refusals_as_ours(what: str) -> Iterator[None]:
    """Turn what Ray's client raises in the body, if the cluster refuses a request, into InfraError.

    Args:
        what: Begins the message.
    """
    try:
        yield
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        raise InfraError(f"{what}: {one_line(error)}") from None


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
        raise JobError(f"--address {address}: {what}; write that of its job API, http://HOST:8265")
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
