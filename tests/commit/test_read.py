"""A URI is an output or one of its partitions, and what it says is what is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.runs.published import DAY, Rows, publish_rows
from support.runs.published_rows import read_predictions

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import locate
from pipeline.storage.store import Store


@pytest.mark.parametrize(
    ("uri", "root", "layout"),
    [
        ("/out", "/out", None),
        ("/out/", "/out", None),
        ("/out/predictions", "/out", Layout(None)),
        ("/out/predictions/", "/out", Layout(None)),
        ("/out/predictions/date=1", "/out", Layout("date=1")),
        ("/out/predictions/date=1/", "/out", Layout("date=1")),
        ("/out/predictions/date=1/label=a", "/out/predictions/date=1/label=a", None),
        ("/out/predictions_of_mine", "/out/predictions_of_mine", None),
        ("/predictions/a/predictions/b", "/predictions/a", Layout("b")),
    ],
)
def test_a_uri_is_an_output_or_one_of_its_partitions(uri: str, root: str, layout: Layout | None):
    options = {"auto_mkdir": False}
    assert locate(uri, options) == (Store(root, options), layout)
    assert locate(uri) == (Store(root, {}), layout)


def test_an_output_may_be_called_predictions(tmp_path: Path):
    store = Store(str(tmp_path / "predictions"))
    publish_rows(store)
    assert locate(store.uri)[0] == store
    assert locate(f"{store.uri}/predictions")[0] == store
    assert locate(f"{store.uri}/predictions/{DAY}") == (store, Layout(DAY))


def test_columns_are_read_in_the_order_that_is_asked_for(tmp_path: Path):
    store = Store(str(tmp_path))
    publish_rows(store, rows=Rows(partition_columns=("kind",), kinds=("a", "b")))
    whole = read_predictions(store.uri, DAY)
    assert whole.column_names[0] == "row_id"
    assert whole.column_names[-1] == "kind"
    for columns in (["score", "row_id"], ["kind", "label"], ["kind"]):
        rows = read_predictions(f"{store.uri}/predictions/{DAY}", columns=columns)
        assert rows.equals(whole.select(columns))
