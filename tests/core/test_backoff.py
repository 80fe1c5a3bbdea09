"""Transient errors are retried a few times and counted; other errors are not retried."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.runs.report_examples import BARE, report_of

from pipeline.core import backoff
from pipeline.core.backoff import TRIES, TransientError, retries_taken, with_retries
from pipeline.core.errors import InfraError, JobError, Stopped
from pipeline.core.figures import Counters, measure
from pipeline.report.render import to_html


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_WAIT_S", 0.0)


def failing(times: int, error: type[Exception] = TransientError) -> Callable[[], str]:
    """Fails so often, then works."""
    left = [error("sick")] * times

    def act() -> str:
        if left:
            raise left.pop()
        return "done"

    return act


@pytest.mark.parametrize("times", range(TRIES))
def test_what_passes_in_time_is_done_and_each_retry_counted(times: int) -> None:
    before = retries_taken()
    assert with_retries(failing(times)) == "done"
    assert retries_taken() - before == times


def test_what_does_not_pass_is_raised_after_the_last_try() -> None:
    before = retries_taken()
    with pytest.raises(TransientError, match="sick"):
        with_retries(failing(TRIES))
    assert retries_taken() - before == TRIES - 1


@pytest.mark.parametrize("error", [JobError, InfraError, FileNotFoundError, ValueError])
def test_what_trying_again_cannot_cure_is_raised_at_once(error: type[Exception]) -> None:
    before = retries_taken()
    with pytest.raises(error, match="sick"):
        with_retries(failing(1, error))
    assert retries_taken() == before


def test_no_try_begins_when_patience_is_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "TIME_LIMIT_S", -1.0)
    with pytest.raises(TransientError):
        with_retries(failing(1))


@pytest.fixture
def deadline() -> Iterator[Callable[[float], None]]:
    yield backoff.stop_retrying_at
    backoff.stop_retrying_at(None)


def test_no_try_begins_after_the_deadline_of_the_run(deadline: Callable[[float], None]) -> None:
    before = retries_taken()
    deadline(time.time() + 3600)
    assert with_retries(failing(1)) == "done"
    deadline(time.time() - 1)
    assert with_retries(failing(0)) == "done"
    with pytest.raises(Stopped, match="deadline"):
        with_retries(failing(1))
    assert retries_taken() - before == 1


def test_retries_of_many_threads_all_count() -> None:
    before = retries_taken()
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda _: with_retries(failing(3)), range(50)))
    assert done == ["done"] * 50
    assert retries_taken() - before == 150


def test_a_stage_counts_its_retries_and_the_report_shows_them() -> None:
    counters: Counters = {}
    with measure(counters, "read"):
        with_retries(failing(2))
    with measure(counters, "list"):
        with_retries(failing(0))
    assert counters["read"]["retries"] == 2
    report = report_of(BARE["published"], counters=counters)
    retries = {stage.stage: stage.retries for stage in report.stages}
    assert (retries["read"], retries["list"], retries["write"]) == (2, 0, None)
    assert "<th>retries</th>" in to_html(report)
    assert "retries" in str(report)
    quiet = report_of(BARE["published"], counters={"read": {}})
    assert "<th>retries</th>" not in to_html(quiet)
    assert "retries" not in str(quiet)
