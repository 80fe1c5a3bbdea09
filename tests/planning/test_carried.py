"""What a plan carries, as numbers: nothing at all, and days."""

from __future__ import annotations

import datetime as dt

import numpy as np

from pipeline.planning.carried import day_of, no_runs


def test_nothing_carried_is_a_table_without_rows():
    assert (no_runs().shape, no_runs().dtype) == ((0, 5), np.int64)


def test_days_count_from_1970():
    assert day_of(dt.datetime(1970, 1, 2, 23, 59, tzinfo=dt.UTC)) == 1
    assert day_of(dt.datetime(2026, 11, 28, tzinfo=dt.UTC)) == 20_785
