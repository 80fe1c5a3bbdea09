"""Test that results print as the command shows them, and that notebooks show the same, escaped."""

from __future__ import annotations

from html import escape

import pytest

from pipeline.operations.backfill import Backfill, DateRun
from pipeline.published.state import PartitionStatus, Status
from pipeline.report.showing.printed import Printed, PrintedDict

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (PrintedDict(why=HOSTILE, rows=3), ("why", HOSTILE)),
        (Backfill((DateRun("2026-11-24", "failed", 1, error=HOSTILE),)), ("failed", HOSTILE)),
        (Status("out", (PartitionStatus("date=2026-11-24", "failed", HOSTILE),)), ("failed",)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_it_prints_as_tables_and_a_notebook_shows_the_same(result: Printed, words: tuple[str, ...]):
    text = str(result)
    assert all(word in text for word in words)
    assert not text.startswith((type(result).__name__, "{"))
    page = result._repr_html_()
    assert page == f"<pre>{escape(text)}</pre>"
    assert HOSTILE not in page
