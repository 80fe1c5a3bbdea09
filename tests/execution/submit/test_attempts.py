"""The ids of attempts, and which attempt a submission is about."""

from __future__ import annotations

import itertools
import re
import time
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.execution.submit.attempts import Attempt, key_of


def attempt(status: str, started_s_ago: float = 0.0, code: int | None = None) -> Attempt:
    details: Any = SimpleNamespace(
        status=SimpleNamespace(value=status),
        driver_exit_code=code,
        start_time=1000 * (time.time() - started_s_ago),
    )
    return Attempt("a-b-12345678-a1", "a-b-12345678", 1, details)


def test_an_id_has_its_names_and_is_another_for_whatever_differs():
    key = key_of("nightly", "date=2026-11-24", ["run --date 2026-11-24", "{}", ""])
    assert re.fullmatch(r"nightly-date=2026-11-24-[0-9a-f]{8}", key)
    parts = ["ab", "c"], ["a", "bc"], ["ab", "c", ""], ["ab"]
    keys = {key_of("nightly", "all", list(part)) for part in parts}
    assert len(keys) == len(parts)


@pytest.mark.parametrize("name", ["my job", "../../x", "a/b?c#d", "\N{SNOWMAN}", "x" * 400])
def test_an_id_is_a_part_of_a_path_and_of_a_file_name_whatever_the_job_is_called(name: str):
    key = key_of(name, name, [])
    assert re.fullmatch(r"[A-Za-z0-9._=-]{1,200}", key)


def test_a_job_that_never_got_a_driver_does_not_go_on():
    assert attempt("PENDING", 5).goes_on(60)
    assert not attempt("PENDING", 65).goes_on(60)
    assert attempt("RUNNING", 6500).goes_on(60)
    assert not any(attempt(end).goes_on(60) for end in ("STOPPED", "FAILED", "SUCCEEDED"))


def test_exit_codes_are_those_of_the_run():
    ends = itertools.product(["FAILED"], range(1, 9))
    assert [attempt(status, code=code).exit_code for status, code in ends] == [*range(1, 9)]
    assert attempt("SUCCEEDED", code=0).exit_code == 0
    assert attempt("STOPPED").exit_code == 6
    for unknown in (None, -9, 127, 137):
        assert attempt("FAILED", code=unknown).exit_code is None
    assert attempt("RUNNING").exit_code is None
