"""Test that results print as the command shows them, and that notebooks show the same, escaped."""

from __future__ import annotations

import io
from html import escape
from pathlib import Path

import pytest
from rich.console import Console
from support.runs.published import DAY, publish_rows

from pipeline.operations.backfill import Backfill, DateRun
from pipeline.published.describe import describe_output
from pipeline.published.status import PartitionStatus, Status
from pipeline.report.showing.printed import Printed, PrintedDict, render_document
from pipeline.storage.store import Store

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


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def shown(document: dict, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render_document(document))
    return console.file.getvalue()


def test_nested_dicts_become_sections_pairs_and_tables():
    text = shown(
        {
            "name": "x",
            "size_bytes": 2048,
            "unknown": None,
            "flag": True,
            "many": [1, 2, 3000],
            "none": [],
            "empty": {},
            "inner": {"rows": 12345, "deep": {"score": 0.123456}},
            "table": [{"label": "cat", "rows": 1}, {"label": None, "more": "yes"}],
        }
    )
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        "size bytes 2.0 KiB",
        "flag yes",
        "many 1, 2, 3,000",
        "inner",
        "rows 12,345",
        "deep",
        "score 0.1235",
        "label rows more",
        "cat 1 -",
        "- - yes",
    ):
        assert line in lines
    assert not any(line.startswith(("unknown", "none", "empty")) for line in lines)


def test_a_document_fits_80_columns_and_has_no_rows_of_dashes(store: Store):
    for day in (DAY, "date=2026-11-25"):
        publish_rows(store, day)
    document = describe_output(store.uri, None, {})
    document["newest"]["gates"] = [
        {"name": "conservation", "value": None, "message": "25 rows in = 20 + 5", "reason": None},
        {"name": None, "value": None, "message": "", "reason": None},
    ]
    document["estimate"] = {"minutes": None, "cost": None, "per_node": {"rows_per_s": None}}
    lines = shown(document, width=80).splitlines()
    assert max(map(len, map(str.rstrip, lines))) <= 80
    assert [line for line in lines if line.strip() and not line.strip(" -")] == []
    text = "\n".join(" ".join(line.split()) for line in lines)
    assert "partition version run id rows" in text
    assert f"{DAY} 1 " in text
    assert "name value" not in text
    assert "name message" in text
    assert "estimate" not in text


def test_long_values_are_folded_and_never_cut():
    digest = "ab" * 200
    assert "".join(shown({"sha256": digest, "rows": [{"x": digest}]}).split()).count("ab") == 400
