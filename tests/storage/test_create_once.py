"""After an unclear create the object is read again, and its token says whose it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from pipeline.core import backoff
from pipeline.core.backoff import TRIES
from pipeline.core.errors import InfraError, JobError
from pipeline.storage import create_once as module
from pipeline.storage.create_once import CreateOutcome, create_once

Answer = bool | bytes | Exception
LOST, SICK, GONE = InfraError("answer lost"), InfraError("store sick"), FileNotFoundError("gone")


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_WAIT_S", 0.0)


def answering(answers: Sequence[Answer]) -> Callable[[], Answer]:
    """Answer in turn, the last answer for ever."""
    left = [*answers]

    def act() -> Answer:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return act


def outcome(create: Sequence[Answer], read: Sequence[Answer]) -> CreateOutcome:
    return create_once(answering(create), answering(read), "token", "s3://b/x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("create", "read", "expected"),
    [
        ([True], [AssertionError("not asked")], CreateOutcome.CREATED),
        ([False], [b"{token}"], CreateOutcome.MINE),
        ([False], [b"{other}"], CreateOutcome.OTHER),
        ([LOST], [b"{token}"], CreateOutcome.MINE),
        ([LOST], [b"{other}"], CreateOutcome.OTHER),
        ([LOST, True], [GONE], CreateOutcome.CREATED),
        ([LOST, True], [SICK], CreateOutcome.CREATED),
        ([False, LOST, False], [SICK, GONE, b"{token}"], CreateOutcome.MINE),
        ([LOST] * (TRIES - 1) + [True], [GONE], CreateOutcome.CREATED),
    ],
)
def test_what_is_there_in_the_end_decides(
    create: list[Answer], read: list[Answer], expected: CreateOutcome
):
    assert outcome(create, read) is expected


@pytest.mark.parametrize(
    ("create", "read", "words"),
    [
        ([LOST], [GONE], "answer lost"),
        ([LOST], [SICK], "store sick"),
        ([False], [SICK], "store sick"),
        ([False], [GONE], "the store says both that it exists and that it does not"),
        ([False] * TRIES + [True], [GONE], "exists and that it does not"),
    ],
)
def test_what_stays_unclear_is_said_with_its_last_cause(
    create: list[Answer], read: list[Answer], words: str
):
    where = f"^cannot create s3://b/x: .* unclear whether it was created; .*{words}"
    with pytest.raises(InfraError, match=where):
        outcome(create, read)


def test_without_time_left_nothing_is_tried_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_TIME_LIMIT_S", -1.0)
    assert outcome([True], [GONE]) is CreateOutcome.CREATED
    with pytest.raises(InfraError, match="answer lost"):
        outcome([LOST, True], [GONE])


def test_a_job_that_is_wrong_is_not_tried_again():
    wrong = JobError("access denied")
    for create, read in (([wrong, True], [GONE]), ([False], [wrong, b"token"])):
        with pytest.raises(JobError, match="access denied"):
            outcome(create, read)
