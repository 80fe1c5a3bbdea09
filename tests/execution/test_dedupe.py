"""Rows of identical bytes are computed once; every row gets the result that it would have got."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs.cli import pipeline, write_job

from pipeline.commands.demo.photos import build_images
from pipeline.commit.published.read import read_predictions
from pipeline.core.failures import Failure, Reason, failure_columns, failures_of
from pipeline.core.rows.aside import put_back
from pipeline.core.schema import RESULT_AT
from pipeline.core.slices import Packed, SliceKey, pack, unpack
from pipeline.execution.dedupe import ResultIndex, look_up, remember
from pipeline.sources.lookup import LookUp

pytestmark = pytest.mark.one_ray


def rows_of(images: list[bytes | None], first: int = 0) -> pa.Table:
    failures = [None if image else Failure(Reason.NULL_INPUT, "read", "") for image in images]
    ids = [f"r{first + i}" for i in range(len(images))]
    return pa.table(
        {
            "row_id": ids,
            "uri": ids,
            "n": pa.array(range(len(images)), pa.int64()),
            "image": pa.array(images, pa.large_binary()),
            **failure_columns(failures),
        }
    )


def read(rows: pa.Table, names: tuple[str, ...] = ("image",)) -> Packed:
    """What comes from the reader of a slice: the rows to compute, and those that are set aside."""
    key = SliceKey(0, 0, rows.num_rows, is_last=True)
    [block] = LookUp(names, merges_copies=True).slices([pack(key, {}, rows)])
    [found] = unpack(block)
    return found


class Model:
    """Gives the length of an image as its value, and fails for those that begin with b."""

    def __init__(self) -> None:
        self.num_computed = 0

    def __call__(self, rows: pa.Table) -> pa.Table:
        images = rows.column("image").to_pylist()
        failures = [
            Failure(Reason.MODEL_ERROR, "predict", "b") if image and image[:1] == b"b" else failed
            for image, failed in zip(images, failures_of(rows), strict=True)
        ]
        self.num_computed += sum(failed is None for failed in failures_of(rows))
        values = [
            None if failed else float(len(image or b""))
            for image, failed in zip(images, failures, strict=True)
        ]
        return pa.table(
            {
                **{name: rows.column(name) for name in ("row_id", "uri", "n")},
                "value": pa.array(values, pa.float32()),
                **failure_columns(failures),
            }
        )


def deduplicated(rows: pa.Table, index: ResultIndex, model: Model) -> pa.Table:
    """What is staged of a slice."""
    _, _, some, aside = read(rows)
    assert aside is not None
    found = look_up(some, aside, index)
    computed = model(found.to_compute())
    remember(found, computed, index)
    return put_back(found.scatter(computed), aside, [])


IMAGES = st.lists(st.none() | st.sampled_from([b"a", b"aa", b"b", b"bbb", b"cccc"]), max_size=9)


@given(slices=st.lists(IMAGES, max_size=5), max_bytes=st.sampled_from([0, 1000, 10**9]))
def test_every_slice_is_what_it_would_be_without(slices: list[list[bytes | None]], max_bytes: int):
    index, model, plain = ResultIndex(max_bytes), Model(), Model()
    for number, images in enumerate(slices):
        rows = rows_of(images, first=100 * number)
        assert deduplicated(rows, index, model).equals(plain(rows))
    if max_bytes == 10**9:
        good = {image for images in slices for image in images if image and image[:1] != b"b"}
        bad = sum(len({i for i in images if i and i[:1] == b"b"}) for images in slices)
        assert model.num_computed == len(good) + bad  # what failed is tried again in each slice


def test_the_index_forgets_the_oldest():
    index = ResultIndex(max_bytes=10_000)
    table = pa.table({"value": pa.array(range(10), pa.int64())})
    for number in range(20):
        index.add([bytes([number, row]) for row in range(10)], table)
    assert index.lookup([bytes([0, 5])]) == ([], None)
    known, found = index.lookup([b"new", bytes([19, 7]), bytes([19, 2])])
    assert known == [1, 2]
    assert found is not None
    assert found.column("value").to_pylist() == [7, 2]


def test_rows_of_two_texts_are_copies_only_if_both_are_equal():
    texts, pairs = ["a", "a", "ab", "a", None], ["b", "b", "", None, "a"]
    columns = {"text": pa.array(texts, pa.large_string()), "text_pair": pa.array(pairs)}
    ids = {"row_id": list("12345"), "uri": list("12345")}
    table = pa.table({**ids, **columns, **failure_columns([None] * 5)})
    found = read(table, ("text", "text_pair"))
    assert found.rows.column("row_id").to_pylist() == ["1", "3", "4", "5"]
    assert found.aside is not None
    assert found.aside.column(RESULT_AT).to_pylist() == [0, 0, 1, 2, 3]


def test_a_row_that_failed_before_stands_for_no_other_of_the_same_bytes():
    """As a row with a bad pass-through value does, whose image is as good as that of its copy."""
    rows = rows_of([b"aa", b"aa", b"aa", b"cccc"])
    failures = [Failure(Reason.BAD_SCHEMA, "read", "n is text"), None, None, None]
    rows = rows.drop_columns([*failure_columns([])])
    rows = pa.table({**{n: rows[n] for n in rows.column_names}, **failure_columns(failures)})
    index, model = ResultIndex(), Model()
    found = deduplicated(rows, index, model)
    assert model.num_computed == 2
    assert found["value"].to_pylist() == [None, 2.0, 2.0, 4.0]
    assert found["error"].to_pylist() == ["bad_schema", None, None, None]
    again = deduplicated(rows_of([b"aa"], first=9), index, model)
    assert (again["value"].to_pylist(), model.num_computed) == ([2.0], 2)


@pytest.mark.slow
def test_a_run_computes_copies_once_wherever_it_decodes(tmp_path: Path) -> None:
    build_images(tmp_path / "images", 30, seed=3, num_bad=3)
    for path in sorted((tmp_path / "images").rglob("*.*")):
        shutil.copy(path, path.with_stem(path.stem + "-copy"))
    source = {"uri": str(tmp_path / "images"), "format": "images"}
    rows, tables = {}, {}
    for decode_in, dedupe in (("actors", False), ("actors", True), ("tasks", True)):
        out = str(tmp_path / f"{decode_in}-{dedupe}")
        run = {"slice_rows": 16, "dedupe": dedupe}
        resources = {"decode_in": decode_in}
        job = write_job(tmp_path / "job.yaml", source, out, run=run, resources=resources)
        done = pipeline("run", job, "--json")
        assert done.code == 0, done.stderr
        assert done.json["decode_in"] == decode_in
        rows[decode_in, dedupe] = done.json["rows"]
        tables[decode_in, dedupe] = read_predictions(out, done.json["partition"]).to_pylist()
    plain = tables.pop(("actors", False))
    assert all(table == plain for table in tables.values())
    assert len({found["quarantined"] for found in rows.values()}) == 1
    assert rows.pop(("actors", False))["deduplicated"] is None
    for found in rows.values():
        assert 27 <= found["deduplicated"] <= 30  # what failed is computed again in another slice


@pytest.mark.slow
def test_a_run_computes_equal_features_once(tmp_path: Path) -> None:
    """A vector is null as a whole, so rows that fail never stand for another."""
    values = [float(row % 8) for row in range(48)]
    rest = [None if row % 12 == 5 else 0.5 for row in range(48)]
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"x": values, "y": rest}), tmp_path / "in" / "s.parquet")
    source = {"uri": str(tmp_path / "in"), "format": "parquet", "features": ["x", "y"]}
    model = {"factory": "models:sums", "task": "regress", "targets": ["total", "largest"]}
    tables, num_copied = {}, {}
    for dedupe in (False, True):
        out = str(tmp_path / str(dedupe))
        run = {"slice_rows": 16, "dedupe": dedupe}
        gates = {"max_error_pct": 20}
        sections = {"model": model, "transform": None, "run": run, "gates": gates}
        done = pipeline("run", write_job(tmp_path / "job.yaml", source, out, **sections), "--json")
        assert done.code == 0, done.stderr
        num_copied[dedupe] = done.json["rows"]["deduplicated"]
        tables[dedupe] = read_predictions(out, done.json["partition"])
    assert tables[True].equals(tables[False])
    wanted = [x + 0.5 for x, y in zip(values, rest, strict=True) if y is not None]
    assert tables[True].column("total").to_pylist() == wanted
    assert num_copied == {False: None, True: len(wanted) - 8}
