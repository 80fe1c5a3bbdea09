"""Test that a textfile that fails or hangs costs one warning and a bounded wait at the end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.runs.report_examples import report_of, samples

from pipeline.report.metric_families import Family, Outside, families_of
from pipeline.report.prometheus import Textfile


def families() -> list[Family]:
    return families_of(report_of(), Outside("nightly", 0.0))


def textfile(path: Path, now: Callable[[], list[Family]] = families, **seconds: float) -> Textfile:
    exporter = Textfile(str(path), "nightly", now, **{"ends_within_s": 60, **seconds})
    exporter.start()
    return exporter


def test_one_that_hangs_is_left_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    hangs = threading.Event()
    path = tmp_path / "nightly.prom"
    exporter = textfile(path, lambda: hangs.wait() and families(), ends_within_s=0.05)
    exporter.end(has_result=True)
    hangs.set()
    (warning,) = [(record.levelname, record.getMessage()) for record in caplog.records]
    message = f"metrics to {path}: no end within 0.05 s; the run goes on without"
    assert warning == ("WARNING", message)


def test_one_that_fails_again_and_again_warns_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    often, num_calls = threading.Event(), 0

    def fail() -> list[Family]:
        nonlocal num_calls
        num_calls += 1
        if num_calls > 3:
            often.set()
        raise OSError("no such\nhost")

    exporter = textfile(tmp_path / "nightly.prom", fail, every_s=0.001)
    assert often.wait(60)
    exporter.end(has_result=True)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.endswith("nightly.prom: OSError: no such host; the run goes on without")


@pytest.mark.parametrize("has_result", [True, False])
def test_only_a_run_with_a_result_replaces_the_file_at_its_end(tmp_path: Path, has_result: bool):
    path = tmp_path / "nightly.prom"
    textfile(path).end(has_result=has_result)
    assert path.exists() == has_result
    if has_result:
        assert samples(path.read_text())
