"""An exporter that fails or hangs costs one warning, and the end of a run a bounded wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from pipeline.report.metrics.exporting import Exporting, Planned


class Exporter:
    """Notes its steps, which then do what a test says."""

    def __init__(self, **acts: Callable[[], object]) -> None:
        self.did: list[str] = []
        self._acts = acts

    def make(self) -> Exporter:
        self._do("make")
        return self

    def update(self) -> None:
        self._do("update")

    def close(self) -> None:
        self._do("close")

    def _do(self, step: str) -> None:
        self.did.append(step)
        self._acts.get(step, lambda: None)()


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    """What a step waits for that hangs; set when the test is over."""
    event = threading.Event()
    yield event
    event.set()


def fail() -> None:
    raise OSError("no such\nhost")


def test_one_that_hangs_and_some_that_fail_do_not_keep_another_from_its_end(
    stuck: threading.Event, caplog: pytest.LogCaptureFixture
):
    hangs, unmade = Exporter(make=stuck.wait), Exporter(make=fail)
    fails, works = Exporter(update=fail, close=fail), Exporter()
    exporting = Exporting([
        Planned("metrics to a", hangs.make, ends_within_s=0.05),
        Planned("metrics to b", unmade.make, ends_within_s=60),
        Planned("metrics to c", fails.make, ends_within_s=60),
        Planned("metrics to d", works.make, ends_within_s=60),
    ])  # fmt: skip
    exporting.end(has_result=True)
    assert works.did == fails.did == ["make", "update", "close"]
    assert sorted(record.getMessage() for record in caplog.records) == [
        "metrics to a: no end within 0.05 s; the run goes on without",
        "metrics to b: OSError: no such host; the run goes on without",
        "metrics to c: OSError: no such host; the run goes on without",
    ]
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_how_a_run_is_goes_out_again_and_again_until_it_ends():
    often, exporter = threading.Event(), Exporter()
    exporter = Exporter(update=lambda: len(exporter.did) > 4 and often.set())
    exporting = Exporting([Planned("metrics", exporter.make, every_s=0.001, ends_within_s=60)])
    assert often.wait(60)
    exporting.end(has_result=True)
    assert exporter.did[-2:] == ["update", "close"]


def test_a_run_without_a_result_is_only_closed():
    works = Exporter()
    Exporting([Planned("metrics", works.make, ends_within_s=60)]).end(has_result=False)
    assert works.did == ["make", "close"]
