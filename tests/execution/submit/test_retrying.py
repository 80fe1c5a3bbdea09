"""Retries of requests to a job API, over real sockets."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from support.servers.httpserver import Answer, WebServer, answer, ok, reset

from pipeline.core.errors import InfraError
from pipeline.execution.submit import client
from pipeline.execution.submit.client import one_line, until_answered

pytestmark = pytest.mark.usefixtures("impatient")

GOOD = ok(b'{"jobs": []}')
CUT = answer(200, b'{"jobs": [1', Content_Length="30")
PAGE = ok(b"<html>we will be back soon</html>")
AGAIN = [answer(503), answer(502, b"<html>"), answer(429), answer(500, b"no agent"), reset, PAGE]


def ask(script: list[Answer], *, is_known: bool = True) -> tuple[Any, int]:
    """The answer to a request, and how often it was sent."""
    with WebServer() as server:
        server.scripts["/api/jobs/"] = script
        url = server.url("/api/jobs/")
        answer = until_answered(
            lambda: requests.get(url, timeout=10), "the cluster", is_known=is_known
        )
        return answer, len(server.paths)


@pytest.mark.parametrize("is_known", [True, False])
def test_temporary_failures_are_retried(is_known: bool):
    answer, times = ask([*AGAIN, GOOD], is_known=is_known)
    assert (answer.json(), times) == ({"jobs": []}, len(AGAIN) + 1)


@pytest.mark.parametrize(
    "final",
    [
        answer(404, b"Job x does not exist"),
        answer(400, b"no"),
        answer(500, b"status code 400: Job with submission_id x already exists"),
        ok(b""),
    ],
)
def test_final_answers_are_not_retried(final: Answer):
    _, times = ask([final, GOOD])
    assert times == 1


def test_giving_up_reports_the_last_failure_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client, "GIVE_UP_S", 0.0)
    with pytest.raises(InfraError, match=r"^the cluster: does not answer: 503 Said: <html> busy$"):
        ask([answer(503, b"<html>\n busy")])
    monkeypatch.setattr(client, "FIRST_CONTACT_S", 0.0)
    with pytest.raises(InfraError, match="no Ray job API answers: 200, but not from Ray"):
        ask([PAGE], is_known=False)


def test_a_traceback_of_the_cluster_is_shown_by_its_last_line():
    text = (
        "status code 500: Traceback (most recent call last):\n  File x\nValueError: no such env\n"
    )
    assert one_line(RuntimeError(text)) == "ValueError: no such env"
