"""Promise: the dataset card describes the output, and engines read it with the code of the card."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.runs.iceberg_sink import options_at
from support.runs.published import Rows, publish_rows, sink_of, slice_table

from pipeline.commit.card import write_card
from pipeline.commit.layout import CARD, Layout
from pipeline.commit.manifest import Manifest
from pipeline.commit.publish import sync_published_folder
from pipeline.commit.tables import table_of
from pipeline.core.environment import FAILPOINT
from pipeline.process import failpoints
from pipeline.storage.store import Store

DAYS = ("date=2026-11-24", "date=2026-11-25")
CARD_TEXTS = {
    "license": "cc-by-4.0",
    "source": "Photos of *our* cameras.",
    "input": "s3://lake/photos",
}
_SNIPPET = re.compile(r"```python\n(.*?)```", re.DOTALL)
OTHERS = ("pyspark", "daft", "datasets")
"""Engines that need an environment of their own: `make engines`."""
ENGINES = os.environ.get("ENGINES_PYTHON")
_CHILD = """
import json, sys
names = {}
exec(sys.stdin.read(), names)
rows = names["rows"]
if hasattr(rows, "toPandas"):
    ids = [row["row_id"] for row in rows.select("row_id").collect()]
else:
    ids = list(rows.to_pydict()["row_id"] if hasattr(rows, "to_pydict") else rows["row_id"])
print(json.dumps(ids))
"""


def published(store: Store, day: str | None, edition: int = 0, **options: Any) -> Manifest:
    """Publish rows and their card."""
    rows = Rows(edition, num_slices=2, kinds=("a|b", "c"), **options)
    manifest = replace(publish_rows(store, day, rows), card=CARD_TEXTS)
    write_card(store, Layout(day), manifest)
    return manifest


def card(store: Store) -> str:
    return store.read_bytes(CARD).decode()


def snippets(store: Store) -> tuple[str, dict[str, str]]:
    """The first line of code of a card, and engine -> code that reads the rows."""
    first, *readers = _SNIPPET.findall(card(store))
    names = {re.search(r"(?:import|from) (\w+)", snippet)[1]: snippet for snippet in readers}  # type: ignore[index]
    return first, names


def ids_of(rows: Any) -> list[str]:
    """The ids of the rows of any engine."""
    frame = rows.df() if hasattr(rows, "fetchall") else rows
    column = frame["row_id"]
    return [
        str(row_id) for row_id in (column.to_pylist() if hasattr(column, "to_pylist") else column)
    ]


LAYOUTS: dict[str, Callable[[Store], list[Manifest]]] = {
    "one partition": lambda store: [published(store, None)],
    "days": lambda store: [published(store, day, number) for number, day in enumerate(DAYS)],
    "folders of columns": lambda store: [
        published(store, day, number, partition_columns=("kind", "label"))
        for number, day in enumerate(DAYS)
    ],
}


@pytest.fixture(params=LAYOUTS)
def output(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Store, list[str]]:
    """An output, and the ids of its predictions."""
    store = Store(str(tmp_path / "it's an output"))
    manifests = LAYOUTS[request.param](store)
    rows = Rows(num_slices=2)
    tables = [slice_table(rows, index) for index in range(2)]
    good = [row["row_id"] for table in tables for row in table.to_pylist() if not row["error"]]
    return store, sorted(good * len(manifests))


@pytest.mark.parametrize("engine", ["pipeline", "pyarrow", "duckdb", "polars"])
def test_an_engine_reads_the_output_with_the_code_of_the_card(
    output: tuple[Store, list[str]], engine: str
) -> None:
    store, expected = output
    first, readers = snippets(store)
    assert set(readers) == {"pipeline", "pyarrow", "duckdb", "polars", *OTHERS}
    names: dict[str, Any] = {}
    exec(first + readers[engine], names)  # as a reader of the card does
    assert sorted(ids_of(names["rows"])) == expected


@pytest.mark.parametrize("engine", ["deltalake", "pyiceberg"])
def test_the_table_of_an_output_is_read_with_the_code_of_the_card(
    engine: str, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "it's an output"))
    options: Any = "delta" if engine == "deltalake" else options_at(f"{tmp_path}/catalog.db")
    for number, day in enumerate(DAYS):
        manifest = replace(publish_rows(store, day, Rows(number), table=options), card=CARD_TEXTS)
        write_card(store, Layout(day), manifest)
    first, readers = snippets(store)
    names: dict[str, Any] = {}
    exec(first + readers[engine], names)
    exec(first + readers["pyarrow"], plain := {})
    assert sorted(ids_of(names["rows"])) == sorted(ids_of(plain["rows"]))


@pytest.mark.slow
@pytest.mark.skipif(ENGINES is None, reason="`make engines` installs Spark, Daft and datasets")
@pytest.mark.parametrize("engine", OTHERS)
def test_an_engine_of_another_environment_reads_the_output_with_the_code_of_the_card(
    output: tuple[Store, list[str]], engine: str, tmp_path: Path
) -> None:
    store, expected = output
    first, readers = snippets(store)
    done = subprocess.run(
        [str(ENGINES), "-c", _CHILD],
        input=first + readers[engine],
        env={**os.environ, "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(done.stdout.splitlines()[-1])) == expected


def test_a_card_describes_what_was_published(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    manifest = published(store, DAYS[0])
    _, head, body = card(store).split("---\n", 2)
    files = "predictions/date=*/*.parquet"
    assert yaml.safe_load(head) == {
        "configs": [{"config_name": "default", "data_files": files}],
        "license": "cc-by-4.0",
    }
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.glob(files)} == {
        part.path for part in manifest.parts
    }
    lines = body.splitlines()
    for line in (
        "# Predictions of `made-up`",
        "| partition | `date=2026-11-24` |",
        f"| rows | {manifest.num_rows} |",
        f"| predictions | {manifest.num_predicted} |",
        f"| in quarantine | {manifest.num_quarantined} |",
        f"| SHA-256 of the weights | {'ab' * 32} |",
        "| `score` | `float` |",
        "| `kind` | `string` |",
        "Photos of *our* cameras.",
        "s3://lake/photos",
        "cc-by-4.0",
    ):
        assert line in lines


def test_the_card_describes_the_partition_published_last(tmp_path: Path) -> None:
    store, layouts = Store(str(tmp_path)), [Layout(day) for day in DAYS]
    first = published(store, DAYS[0])
    last = replace(published(store, DAYS[1], 1), created_at="2026-11-26T00:00:00+00:00")
    write_card(store, layouts[1], last)
    write_card(store, layouts[0], first)  # a run that comes late, or finds nothing to do
    assert "| partition | `date=2026-11-25` |" in card(store)
    write_card(store, layouts[0], replace(first, created_at="2026-11-27T00:00:00+00:00"))
    assert "| partition | `date=2026-11-24` |" in card(store)


def test_a_readme_of_the_user_stays_and_an_output_without_a_card_gets_none(tmp_path: Path) -> None:
    store, layout = Store(str(tmp_path)), Layout(DAYS[0])
    without = publish_rows(store, DAYS[0])
    sync_published_folder(store, layout, without, 2)
    assert not store.exists(CARD)
    store.put(CARD, b"# Mine\n")
    write_card(store, layout, replace(without, card=CARD_TEXTS))
    assert store.read_bytes(CARD) == b"# Mine\n"


def test_the_next_run_writes_the_card_of_a_killed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, layout = Store(str(tmp_path)), Layout(DAYS[0])
    manifest = replace(publish_rows(store, DAYS[0]), card=CARD_TEXTS)
    monkeypatch.setenv(FAILPOINT, "trimmed:raise")
    failpoints._reached.clear()
    with pytest.raises(RuntimeError, match="trimmed"):
        sync_published_folder(store, layout, manifest, 2)
    assert not store.exists(CARD)
    monkeypatch.delenv(FAILPOINT)
    sync_published_folder(store, layout, manifest, 2)
    assert "| version | 1 |" in card(store)


def test_a_card_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(str(tmp_path))
    (tmp_path / CARD).mkdir()
    manifest = published(store, DAYS[0])
    assert f"{CARD} was not written" in caplog.text
    caplog.clear()
    (tmp_path / CARD).rmdir()
    (tmp_path / manifest.parts[0].path).write_bytes(b"PAR1 no part PAR1")
    write_card(store, Layout(DAYS[0]), manifest)
    assert f"{CARD} was not written" in caplog.text


def test_labels_of_a_model_have_no_effect_as_markdown(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    hostile = {"labels": {"a|`<b>\n## c": 3}}
    manifest = replace(publish_rows(store, None), card=CARD_TEXTS, distribution=hostile)
    write_card(store, Layout(None), manifest)
    assert r"| most common labels | `a\|'<b>\n## c` 3 |" in card(store).splitlines()


def test_a_delta_table_has_its_card_without_the_log(tmp_path: Path) -> None:
    store, layout = Store(str(tmp_path)), Layout(DAYS[0])
    manifest = replace(publish_rows(store, DAYS[0], table="delta"), card=CARD_TEXTS)
    sync_published_folder(store, layout, manifest, 2, table=table_of(sink_of("delta"), store))
    assert "predictions/date=*/*.parquet" in card(store)
