"""Ray's client of the job API, with time limits, retries and the current token."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import math
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from pipeline.core.backoff import Retries
from pipeline.core.errors import InfraError, JobError
from pipeline.core.printable import clean_message
from pipeline.execution.environment import authorization, refused_token, send_token
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
    """Return a client of the job API, after the cluster has answered once.

    Its requests are retried, each time with the current token. They raise InfraError if no retry
    helps, and RuntimeError if the cluster refuses the request.

    Raises:
        JobError: The address or the token is wrong, the extra `submit` is missing, or the
            cluster's Ray is too old.
        InfraError: Nothing answers, or the answer is not that of a job API.
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
        """Ray's client sets no time limits and keeps its first token; this one does both."""

        is_known = False
        """The cluster has answered before."""
        where = shown

        def renew_token(self) -> None:
            """Read the token again: it may expire, and be replaced, while a job runs."""
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
    """Turn the errors of Ray's client in the body into InfraError.

    Args:
        what: Start of the message.
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
        what = (
            "this is the address of a cluster's head, for `pipeline run`"
            if is_head
            else "not an HTTP address"
        )
        raise JobError(
            f"--address (or RAY_ADDRESS) {address}: {what}; write the "
            "address of its job API, http://HOST:8265"
        )
    return f"{parts.scheme}://{parts.hostname}{port}"


def _warn_if_open(address: str, *, has_token: bool) -> None:
    parts = urlsplit(address)
    if parts.scheme == "http" and not has_token and not is_loopback(parts.hostname or ""):
        log.warning(
            "%s: no encryption and no token (RAY_AUTH_TOKEN): anyone who reaches this port can "
            "run code on the cluster",
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
    """Make the client in the body use this address; Ray prefers environment variables."""
    name = "RAY_API_SERVER_ADDRESS"
    saved = os.environ.get(name)
    os.environ[name] = address
    try:
        yield
    finally:
        del os.environ[name]
        if saved is not None:
            os.environ[name] = saved


GIVE_UP_S = 120.0
"""Long, since the job keeps running while its cluster does not answer."""
FIRST_CONTACT_S = 10.0
"""Short, since an address where nothing has answered yet may be wrong."""
_SLOWEST = 5
"""The waits, a few seconds by then, stop growing after this many tries."""
_TOO_MANY, _SERVER_ERROR = 429, 500
_REFUSED_BY_AGENT = "status code 4"
"""In the text of a 500, with which the head reports a refusal of the node that runs jobs."""


def until_answered(ask: Callable[[], Any], shown: str, *, is_known: bool) -> Any:
    """Return the answer to a request that may be sent twice; retry while that may help.

    Args:
        ask: Sends the request with the current token, and returns the answer.
        shown: The cluster, for messages.
        is_known: It has accepted the token before. A token that is refused now has expired, and
            may be replaced soon.

    Raises:
        InfraError: There is no usable answer for `GIVE_UP_S`; on first contact, `FIRST_CONTACT_S`.
        AuthenticationError: Ray's, on first contact: the token is missing or wrong.
    """
    from requests import RequestException

    limit_s = GIVE_UP_S if is_known else FIRST_CONTACT_S
    retries = Retries(math.inf, limit_s, longest_wait_after=_SLOWEST)
    while True:
        root: BaseException | None = None
        try:
            answer = ask()
            trouble = _trouble_of(answer)
            if not trouble:
                return answer
        except RequestException as error:
            root = error
            while root.__context__ is not None:  # "connection refused" without three wrappers
                root = root.__context__
            trouble = one_line(root)
        except refused_errors():
            if not is_known:
                raise
            trouble = refused_token("it no longer lets us in")
        is_nowhere = not is_known and isinstance(root, ConnectionRefusedError | socket.gaierror)
        level = logging.INFO if retries.num_failed + 1 == _SLOWEST else logging.DEBUG
        log.log(level, "%s: try %d, as it may pass: %s", shown, retries.num_failed + 1, trouble)
        if is_nowhere or not retries.wait():
            what = "does not answer" if is_known else "no Ray job API answers"
            raise InfraError(f"{shown}: {what}: {trouble}")


def _trouble_of(answer: Any) -> str:
    """Return why to retry after an answer; '' if it is final, be it a refusal."""
    if answer.status_code == _OK:
        return "" if _is_whole(answer) else f"200, but not from Ray: {one_line(answer.text)}"
    is_final = answer.status_code < _SERVER_ERROR and answer.status_code != _TOO_MANY
    if is_final or _REFUSED_BY_AGENT in answer.text:
        return ""
    return f"{answer.status_code} {answer.reason}: {one_line(answer.text)}"


def _is_whole(answer: Any) -> bool:
    """Tell whether a body is Ray's; a proxy may send an error page with status 200."""
    if not answer.content:  # the answer about an uploaded package
        return True
    try:
        answer.json()
    except ValueError:
        return False
    return True


def one_line(reason: object) -> str:
    """Return a reason as one printable line; of a traceback, its last line."""
    text = str(reason)
    if "Traceback (most recent call last)" in text:
        text = text.rstrip().splitlines()[-1]
    prefix = f"{type(reason).__name__}: " if isinstance(reason, ValueError | KeyError) else ""
    return clean_message(f"{prefix}{text}")
