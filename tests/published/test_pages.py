"""Pages of `inspect` and `diff` show the rows that they speak of."""

from __future__ import annotations

from pathlib import Path

from support.runs.published import publish_rows
from typer.testing import CliRunner

from pipeline.commands.app import app
from pipeline.operations.inspect import inspect
from pipeline.storage.store import Store


def test_a_page_of_inspect_says_what_the_command_says(tmp_path: Path):
    store = Store(str(tmp_path / "out"))
    for day in (23, 24):
        publish_rows(store, f"date=2026-11-{day}")
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["inspect", store.url(""), "--html", str(page), "--json"])
    assert done.exit_code == 0, done.output
    text = page.read_text("utf-8")
    first, last = (text.index(f"<td>date=2026-11-{day}</td><td>complete</td>") for day in (23, 24))
    assert last < first
    for words in ("date=2026-11-24, version 1", "made-up", "Least certain"):
        assert words in text
    assert "does not say how its input was read" in text
    assert "<th>unreadable shards</th><td>0</td>" in text, "what is zero is said, too"
    places = [text.index(words) for words in (">predicted<", "does not say", "fingerprint")]
    assert places == sorted(places), "what was predicted, pictures, then ids and hashes"
    inspect(store.url(""), html=page, samples=0)
    assert "Least certain" not in page.read_text("utf-8")
