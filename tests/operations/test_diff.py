"""`pipeline diff`: which versions it compares, and what it shows."""

from __future__ import annotations

import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.runs.published import Rows, publish_rows
from typer.testing import CliRunner

import pipeline
from pipeline.commands.app import app
from pipeline.core.errors import InfraError, JobError
from pipeline.published.diff.columns import ColumnSums
from pipeline.published.diff.comparing import Difference, LabelScores, Mover
from pipeline.storage.store import Store

DAYS = [f"date=2026-11-{day}" for day in (23, 24)]
OF_CATS, OF_DOGS = Rows(), Rows(edition=2, fail_every=7)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two partitions; the later one was published twice."""
    store = Store(str(tmp_path_factory.mktemp("diff")))
    publish_rows(store, DAYS[0], OF_CATS)
    publish_rows(store, DAYS[1], OF_CATS)
    publish_rows(store, DAYS[1], OF_DOGS)
    return store


def test_an_output_is_compared_with_the_previous_partition(output: Store):
    result = pipeline.diff(output.url(""))
    assert DAYS[0] in result.difference.before
    assert f"{DAYS[1]} version 2" in result.difference.now
    assert result.summary.startswith(
        f"{result.difference.changed} of {result.difference.both} rows in both"
    )
    assert str(result).split()[:2] == ["verdict", str(result.difference.changed)]


def test_a_version_is_compared_with_any_other(output: Store):
    folder = f"{output.url('')}/predictions/{DAYS[1]}"
    old, new = (
        pipeline.diff(folder, f"{folder}@1").difference,
        pipeline.diff(f"{folder}@1", folder).difference,
    )
    assert (old.added, old.removed) == (new.removed, new.added)
    partitions = pipeline.open_output(output.url(""))
    first, last = partitions[DAYS[0]], partitions[DAYS[1]]
    assert pipeline.diff(first, last.version(1)).difference.is_equal
    assert pipeline.diff(first, last).difference == pipeline.diff(output.url("")).difference
    recovered = pipeline.diff(first, last).difference.recovered
    assert dict(recovered) == {"truncated": recovered.total()}
    assert recovered.total() > 0


def test_the_first_partition_is_compared_with_its_previous_version(tmp_path: Path):
    store = Store(str(tmp_path))
    publish_rows(store, None, OF_CATS)
    with pytest.raises(JobError, match="nothing was published before it; give a second version"):
        pipeline.diff(str(tmp_path))
    publish_rows(store, None, OF_DOGS)
    difference = pipeline.diff(tmp_path).difference
    assert ("version 1" in difference.before, "version 2" in difference.now) == (True, True)
    publish_rows(store, None, OF_CATS)
    difference = pipeline.diff(tmp_path).difference
    assert ("version 2" in difference.before, "version 3" in difference.now) == (True, True)


def test_the_file_of_differing_rows_is_written_atomically(output: Store, tmp_path: Path):
    target = tmp_path / "rows.parquet"
    difference = pipeline.diff(output.url(""), rows_to=target).difference
    counted = pq.read_table(target).column("change").value_counts().to_pylist()
    wanted = {
        "changed": difference.changed,
        "added": difference.added,
        "removed": difference.removed,
    }
    assert {counts["values"]: counts["counts"] for counts in counted} == {
        name: rows for name, rows in wanted.items() if rows
    }
    with pytest.raises(JobError, match="cannot be written: "):
        pipeline.diff(output.url(""), rows_to=tmp_path / "none" / "rows.parquet")
    with pytest.raises(JobError, match="is a folder; give a file"):
        pipeline.diff(output.url(""), rows_to=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["rows.parquet"]


def test_a_missing_part_is_named_and_nothing_is_written(tmp_path: Path):
    store = Store(str(tmp_path / "output"))
    for day, rows in zip(DAYS, (OF_CATS, OF_DOGS), strict=True):
        publish_rows(store, day, rows)
    gone = pipeline.open_output(store.url("")).latest.manifest.parts[-1].path
    Path(store.url(gone)).unlink()
    with pytest.raises(InfraError, match=r"part-.*parquet: is gone, also from the history"):
        pipeline.diff(store.url(""), rows_to=tmp_path / "rows.parquet")
    assert [file.name for file in tmp_path.iterdir()] == ["output"]


class Tags(HTMLParser):
    """The names of all elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)


def test_a_page_and_a_notebook_show_hostile_values_as_text(tmp_path: Path):
    hostile = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    store = Store(str(tmp_path / "output"))
    publish_rows(store, None, Rows(kinds=("a", "b")))
    publish_rows(store, None, Rows(edition=2, kinds=(hostile, "b")))
    result = pipeline.diff(store.url(""))
    result.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert repr(result) == result.summary
    assert result.summary in page
    with pytest.raises(JobError, match="cannot be written: "):
        result.to_html(tmp_path / "none" / "page.html")
    assert result._repr_html_().startswith(f"<p><b>{result.difference.changed} of ")
    for shown in (page, result._repr_html_()):
        assert Tags(shown).names.isdisjoint({"script", "img", "link", "iframe"})
        assert "&lt;script&gt;" in shown
        assert len(shown) < 300_000
    assert "default-src 'none'" in page


def test_the_largest_page_is_below_300_kb():
    quotes = '"' * 200  # each is six characters when it is escaped
    columns = {
        f"{number}{quotes}": ColumnSums(
            f"{number}{quotes}", "value", differing=5,
            pairs=Counter({(f"{flip}{quotes}", quotes): 1 for flip in range(1000)}),
        )
        for number in range(200)
    }  # fmt: skip
    mover = Mover(quotes, 1.0, dict.fromkeys(columns, quotes), dict.fromkeys(columns, quotes))
    result = pipeline.Diff(
        Difference(
            quotes, quotes, 0.001, both=1000, changed=1000, columns=columns, largest=(mover,) * 100,
            recovered=Counter({quotes: 5}),
            label_scores={f"{n}{quotes}": LabelScores(1, 0.5, n) for n in range(1000)},
        )
    )  # fmt: skip
    page = result._repr_html_()
    assert len(page.encode()) < 300_000
    assert quotes[:80] not in page


def test_the_command_prints_one_document_and_fails_over_a_limit(output: Store, tmp_path: Path):
    def call(*options: str, url: str = output.url("")) -> tuple[int, str, str]:
        done = CliRunner().invoke(app, ["diff", url, *options])
        return done.exit_code, done.stdout, done.stderr

    code, printed, _ = call("--json", "--html", str(tmp_path / "page.html"))
    document = json.loads(printed)
    assert (code, (tmp_path / "page.html").exists()) == (0, True)
    assert document["verdict"] == pipeline.diff(output.url("")).summary
    limit = f"{document['differing_pct'] - 0.01}%"
    assert call("--fail-over", "100%")[0] == call("--fail-over", "100")[0] == 0
    code, _, message = call("--fail-over", limit)
    assert (code, f"more than --fail-over {limit}" in message) == (3, True)
    store = Store(str(tmp_path / "output"))
    publish_rows(store, None, OF_CATS)
    publish_rows(store, None, Rows(fail_every=0))
    url = store.url("")
    assert pipeline.diff(url).changed_pct == 0, "rows came and none changed"
    assert (call("--fail-over=16%", url=url)[0], call("--fail-over=17%", url=url)[0]) == (3, 0)


@pytest.mark.parametrize("limit", ["some", "-1", "101%"])
def test_a_limit_is_a_percentage(output: Store, limit: str):
    done = CliRunner().invoke(app, ["diff", output.url(""), f"--fail-over={limit}"])
    assert "write a percentage from 0 to 100" in str(done.exception)


def test_a_partition_can_be_given_below_the_root(output: Store):
    below, folder = output.url(f"{DAYS[1]}@1"), output.url(f"predictions/{DAYS[1]}@1")
    assert pipeline.diff(below, folder).differing_pct == 0.0


def test_a_partition_that_is_not_published_is_named(output: Store):
    with pytest.raises(JobError):
        pipeline.diff(f"{output.url('')}/predictions/{DAYS[1]}@7")
    with pytest.raises(JobError, match="tolerance"):
        pipeline.diff(output.url(""), tolerance=-1.0)
