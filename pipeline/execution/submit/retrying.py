"""Requests to a job API through proxies that misbehave: sent again until one is answered."""

from __future__ import annotations

import itertools
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

from pipeline.core.backoff import wait_before_retry
from pipeline.core.errors import InfraError
from pipeline.core.printable import clean_message
from pipeline.execution.environment import refused_token
from pipeline.execution.versions import refused_errors

log = logging.getLogger(__name__)

GIVE_UP_S = 120.0
"""A job goes on while its cluster does not answer, so this is patient."""
FIRST_CONTACT_S = 10.0
"""But an address at which nothing has answered yet may be wrong."""
_SLOWEST = 5
"""After so many tries the pauses, of a few seconds then, grow no more."""
_OK, _TOO_MANY, _SERVER_ERROR = 200, 429, 500
_REFUSED_BY_AGENT = "status code 4"
"""In the text of a 500: the head passes on that the node which runs jobs has refused."""


def until_answered(ask: Callable[[], Any], shown: str, *, is_known: bool) -> Any:
    """Return the answer to a request that may be sent twice, sending it again while that may help.

    Args:
        ask: Sends it, with the token as it is by then, and returns the answer.
        shown: The cluster, as a message begins.
        is_known: It has let us in before, so that a refused token has expired, and a new one may
            be in its file soon.

    Raises:
        InfraError: There is no usable answer for `GIVE_UP_S`; on first contact, `FIRST_CONTACT_S`.
        AuthenticationError: Of Ray, on first contact: it wants a token, or another one.
    """
    from requests import RequestException

    give_up = time.monotonic() + (GIVE_UP_S if is_known else FIRST_CONTACT_S)
    for attempt in itertools.count(1):
        root: BaseException | None = None
        try:
            answer = ask()
            trouble = _trouble_of(answer)
            if not trouble:
                return answer
        except RequestException as error:
            root = _root(error)
            trouble = one_line(root)
        except refused_errors():
            if not is_known:
                raise
            trouble = refused_token("it no longer lets us in")
        is_nowhere = not is_known and isinstance(root, ConnectionRefusedError | socket.gaierror)
        if is_nowhere or time.monotonic() > give_up:
            what = "does not answer" if is_known else "no Ray job API answers"
            raise InfraError(f"{shown}: {what}: {trouble}")
        level = logging.INFO if attempt == _SLOWEST else logging.DEBUG
        log.log(level, "%s: try %d, as it may pass: %s", shown, attempt, trouble)
        wait_before_retry(min(attempt, _SLOWEST))
    raise AssertionError("not reached: the loop has no end")


def _trouble_of(answer: Any) -> str:
    """Say why an answer is none; '' if it is one, if only an error of the request's own."""
    if answer.status_code == _OK:
        return "" if _is_whole(answer) else f"200, but no answer of Ray's: {one_line(answer.text)}"
    is_final = answer.status_code < _SERVER_ERROR and answer.status_code != _TOO_MANY
    if is_final or _REFUSED_BY_AGENT in answer.text:
        return ""
    return f"{answer.status_code} {answer.reason}: {one_line(answer.text)}"


def _is_whole(answer: Any) -> bool:
    """Tell whether the body of an answer is Ray's; an error page of a proxy may come with 200."""
    if not answer.content:  # of a package that is there, or was uploaded
        return True
    try:
        answer.json()
    except ValueError:
        return False
    return True


def _root(error: BaseException) -> BaseException:
    """Return what the HTTP client met first: "connection refused" without three wrappers."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def one_line(reason: object) -> str:
    """Return what went wrong as one printable line; of a traceback that Ray sent, the last one."""
    text = str(reason)
    if "Traceback (most recent call last)" in text:
        text = text.rstrip().splitlines()[-1]
    kind = f"{type(reason).__name__}: " if isinstance(reason, ValueError | KeyError) else ""
    return clean_message(f"{kind}{text}")
