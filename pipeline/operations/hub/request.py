"""Requests to a model hub: each bounded in bytes and seconds, and led to no inner address.

The client library `huggingface_hub` gives the HTTP client: HF_ENDPOINT, proxies and certificates
are its own settings. The token comes from HF_TOKEN alone and is never shown.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pipeline.core.backoff import TransientError
from pipeline.core.errors import InfraError, JobError, PipelineError
from pipeline.core.printable import clean_message
from pipeline.sources.uris.policy import is_allowed

TOKEN_VARIABLE, ENDPOINT_VARIABLE = "HF_TOKEN", "HF_ENDPOINT"
_TIMEOUT_S = 30.0
"""Without any byte for so long, a request counts as failed."""
_MAX_REDIRECTS = 10

T = TypeVar("T")


def endpoint() -> str:
    """Return the address of the hub."""
    from huggingface_hub import constants

    return os.environ.get(ENDPOINT_VARIABLE, "").rstrip("/") or constants.ENDPOINT


def within(limit_s: float, what: str, act: Callable[[Callable[[], bool]], T]) -> T:
    """Return what `act` returns, in a thread of its own: an answer may drip for ever.

    Args:
        limit_s: How long to wait for it.
        what: For the message.
        act: Gets a function that tells whether it is late, and has to end then.

    Raises:
        InfraError: It is late.
        Exception: Of `act`, as it is.
    """
    done, late = threading.Event(), threading.Event()
    found: list[T] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.append(act(late.is_set))
        except BaseException as error:  # noqa: BLE001  # it goes on in the caller
            failed.append(error)
        done.set()

    threading.Thread(target=work, daemon=True).start()
    try:
        if not done.wait(limit_s):
            raise InfraError(f"{what}: the hub's answer was not whole after {limit_s:,g} s")
    finally:
        late.set()
    if failed:
        raise failed[0]
    return found[0]


@contextmanager
def requested(what: str, url: str, more: Mapping[str, str] | None = None) -> Iterator[Any]:
    """Yield the streamed answer to a GET of the hub, after redirects.

    Args:
        what: For messages.
        url: Of the hub.
        more: Further headers.

    Raises:
        JobError: There is no such thing, or access is denied.
        InfraError: The hub answers otherwise than it should, or leads to an address inside.
        TransientError: The hub does not answer, or is overloaded.
    """
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    headers = {**build_hf_headers(token=_token()), "Accept-Encoding": "identity", **(more or {})}
    with hub_errors(what):
        client = get_session()
        request = client.build_request("GET", url, headers=headers, timeout=_TIMEOUT_S)
        for _ in range(_MAX_REDIRECTS):
            answer = client.send(request, stream=True, follow_redirects=False)
            try:
                if answer.next_request is None:
                    hf_raise_for_status(answer)
                    yield answer
                    return
                require_outside(what, url, str(answer.next_request.url))
                request = answer.next_request
            finally:
                answer.close()
        raise InfraError(f"{what}: the hub redirects more than {_MAX_REDIRECTS} times")


def require_outside(what: str, hub: str, url: str) -> None:
    """Refuse a redirect from a public hub to an address that is none, such as cloud metadata.

    Raises:
        InfraError: It leads there.
    """
    if _are_public(hub) and not _are_public(url):
        host = clean_message(urlsplit(url).hostname or "", 100)
        raise InfraError(f"{what}: the hub redirects to {host}, which is no public address")


def _are_public(url: str) -> bool:
    """Tell whether all addresses of a URL's host are; also where the name is a proxy's to find."""
    host = urlsplit(url).hostname or ""
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(host, None)}
        addresses = [ipaddress.ip_address(each.partition("%")[0]) for each in found]
    except (OSError, ValueError):
        return True
    return all(is_allowed(address, may_be_private=False) for address in addresses)


def _token() -> str | bool:
    """Return the token; False: none, not the one that the library may have stored."""
    return os.environ.get(TOKEN_VARIABLE, "").strip() or False


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn errors of the client library into ours, in one line and without its advice."""
    from huggingface_hub import errors

    try:
        yield
    except PipelineError:
        raise
    except errors.GatedRepoError as error:
        hint = f"accept its terms on its page, then set {TOKEN_VARIABLE}"
        raise JobError(f"{what}: is gated, and {_access()}: {hint}") from error
    except errors.RevisionNotFoundError as error:
        raise JobError(f"{what}: the repository has no such revision") from error
    except errors.RepositoryNotFoundError as error:
        raise JobError(f"{what}: no such repository, or a private one, and {_access()}") from error
    except (errors.HFValidationError, errors.OfflineModeIsEnabled) as error:
        raise JobError(f"{what}: {clean_message(str(error), 200)}") from error
    except errors.HfHubHTTPError as error:
        raise _by_status(what, error.response.status_code) from error
    except Exception as error:
        # Each version of the library has its own HTTP client with its own classes.
        if not isinstance(error, OSError | ValueError) and not _is_of_client(error):
            raise
        told = clean_message(f"{type(error).__name__}: {error}", 200)
        raise TransientError(f"{what}: the hub does not answer ({told})") from error


def _by_status(what: str, status: int) -> PipelineError:
    if status in (401, 403):
        return JobError(f"{what}: access denied ({status}), and {_access()}")
    if status in (408, 416, 429) or status >= 500:
        return TransientError(f"{what}: the hub answers with {status}")
    return InfraError(f"{what}: the hub answers with {status}")


def _access() -> str:
    return f"{TOKEN_VARIABLE} is {'not accepted' if _token() else 'not set'}"


def _is_of_client(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0].startswith(("httpx", "httpcore"))
