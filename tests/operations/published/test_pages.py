"""Pages of `inspect` and `diff` show the rows that they speak of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.inputs.encoded import base_image, encode
from support.runs.published import Rows, publish_rows
from support.runs.sampled import publish_over
from typer.testing import CliRunner

import pipeline
from pipeline.commands.app import app
from pipeline.core.errors import JobError
from pipeline.operations.diff import Diff
from pipeline.operations.outputs import inspect
from pipeline.operations.published.output import Partition
from pipeline.storage.store import Store

PHOTO = encode(base_image(3, 40, 30), "PNG")


def test_a_page_of_diff_shows_pictures_of_the_largest_movers(tmp_path: Path):
    before = publish_over(tmp_path, Rows(), lambda row: PHOTO)
    after = publish_over(tmp_path, Rows(edition=2), lambda row: PHOTO)
    first, second = (
        Partition(each.store, each.layout, each.manifest, {}) for each in (before, after)
    )
    found = pipeline.diff(first, second)
    assert found.later == second
    found.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert page.count("data:image/jpeg;base64,") == min(12, len(found.movers()))
    assert "edition 1 -&gt; edition 2" in page
    found.to_html(tmp_path / "page.html", movers=0)
    assert "<img" not in (tmp_path / "page.html").read_text("utf-8")
    gone = Diff(found.found, replace(second, manifest=replace(second.manifest, source={})))
    gone.to_html(tmp_path / "page.html")
    assert "does not say how its input was read" in (tmp_path / "page.html").read_text("utf-8")
    with pytest.raises(JobError, match="cannot be written: "):
        found.to_html(tmp_path / "none" / "page.html")


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
    for words in ("date=2026-11-24, version 1", "made-up", "Quarantine"):
        assert words in text
    assert "does not say how its input was read" in text
    assert "<th>unreadable shards</th><td>0</td>" in text, "what is zero is said, too"
    places = [text.index(each) for each in (">predicted<", "does not say", "fingerprint")]
    assert places == sorted(places), "what was predicted, pictures, then ids and hashes"
    inspect(store.url(""), html=page, samples=0)
    assert "Quarantine" not in page.read_text("utf-8")
