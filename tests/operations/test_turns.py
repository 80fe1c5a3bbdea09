"""The order in which dates are done, and what ends it; the dates are made up, so no Ray starts."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

import pytest

from pipeline.job.reading.dates import date_text
from pipeline.operations.backfill import DateRun, do_all
from pipeline.runs.progress import Silent

DAYS = [dt.date(2026, 11, day) for day in (1, 2, 3)]


class MadeUpDates:
    """Each date ends with a code; notes when it was done, and on which of several Rays."""

    def __init__(self, codes: Mapping[int, int]) -> None:
        self.codes = codes
        self.done: list[tuple[int, int]] = []
        self._rays: list[Any] = []

    def do(self, day: dt.date, progress: object) -> tuple[DateRun, bool]:
        from pipeline.execution.caller import SHARING

        sharing = SHARING.get()
        if sharing not in self._rays:
            self._rays.append(sharing)
        self.done.append((day.day, self._rays.index(sharing)))
        code = self.codes.get(day.day, 0)
        return DateRun(date_text(day), "-", code), code == 6


@pytest.mark.parametrize(
    ("codes", "done", "ends"),
    [
        ({}, [(1, 0), (2, 0), (3, 0)], [0, 0, 0]),
        ({1: 3, 2: 8}, [(1, 0), (2, 0), (3, 0)], [3, 8, 0]),
        ({1: 7}, [(1, 0), (2, 1), (3, 1)], [7, 0, 0]),  # after trouble with Ray, a new one
        ({2: 6}, [(1, 0), (2, 0)], [0, 6, 6]),
    ],
)
def test_a_date_that_fails_keeps_no_other_from_its_turn_but_a_stop_does(
    codes: dict[int, int], done: list[tuple[int, int]], ends: list[int]
):
    dates: Any = MadeUpDates(codes)
    runs = do_all(dates, DAYS, Silent())
    assert dates.done == done
    assert [date_run.exit_code for date_run in runs] == ends
    assert [date_run.date for date_run in runs] == [*map(date_text, DAYS)]


def test_the_newest_may_be_first_and_results_are_by_date():
    dates: Any = MadeUpDates({})
    runs = do_all(dates, DAYS[::-1], Silent())
    assert [day for day, _ in dates.done] == [3, 2, 1]
    assert [date_run.date for date_run in runs] == [*map(date_text, DAYS)]
