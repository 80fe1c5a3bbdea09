"""Promise: a slice is staged as a whole, in one put, or not at all; damage is found."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.runs.published import Rows, slice_table

from pipeline.commit.layout import Layout
from pipeline.commit.parts.part_file import DamagedPart, find_damaged, read_columns
from pipeline.commit.staging import (
    Checked,
    StagedSlice,
    StagingWriter,
    discard_staged,
    encodings,
    list_staged,
    quarantine_without_folder,
    read_footer,
    read_footers,
)
from pipeline.core.errors import InfraError
from pipeline.core.failures import Failure, Reason, failure_columns
from pipeline.core.figures import Counters, StageCounters
from pipeline.core.schema import staged_schema
from pipeline.core.slices import SliceKey
from pipeline.storage.store import Store


def rows_of(num_rows: int) -> pa.Table:
    ids = [f"r{row}" for row in range(num_rows)]
    return pa.table({"row_id": ids, **failure_columns([None] * num_rows)})


@pytest.mark.parametrize("num_rows", [0, 3, 5])
def test_a_slice_with_a_wrong_number_of_rows_is_not_staged(tmp_path: Path, num_rows: int):
    store = Store(str(tmp_path))
    writer = StagingWriter(store, "staging", "r", "zstd", {})
    with pytest.raises(InfraError, match=f"slice 7-10-14: has {num_rows} rows, expected 4"):
        writer.write(SliceKey(7, 10, 14, is_last=False), {}, rows_of(num_rows))
    assert store.list_files() == []


def test_a_staged_slice_is_found_by_its_key_and_has_its_figures(tmp_path: Path):
    store, key = Store(str(tmp_path)), SliceKey(7, 10, 14, is_last=False)
    staged = StagingWriter(store, "staging", "r", "zstd", {}).write(key, {}, rows_of(4))
    files = list_staged(store, "staging")
    assert [*files] == [key]
    footer = read_footer(store, files[key].path)
    assert (footer.name, footer.num_rows, footer.run_id) == (staged.name, 4, "r")


def test_rows_set_aside_are_staged_at_their_places_and_counted(tmp_path: Path):
    store, key = Store(str(tmp_path)), SliceKey(7, 10, 14, is_last=False)
    rows = rows_of(4).append_column("label", pa.array(["red", "red", "blue", "blue"]))
    aside = pa.table(
        {
            "_is_computed": [False, True, True, False],
            "_source": ["v", None, "v", "w"],
            **{n: rows.column(n).take(pa.array([0, None, 2, 3])) for n in rows.column_names},
        }
    )
    compared: list[list[pa.Table]] = []

    def check(*tables: pa.Table) -> Checked:
        compared.append([*tables])
        return Checked(1, ["r2: expected blue, found green"])

    writer = StagingWriter(store, "staging", "r", "zstd", {}, ("label",), check=check)
    computed = rows.slice(1, 2).set_column(
        rows.column_names.index("label"), "label", pa.array(["red", "green"])
    )
    staged = writer.write(key, {}, computed, aside)
    assert (staged.num_rows, staged.num_carried, staged.sources) == (4, 2, ["v", "w"])
    assert staged.labels == {"red": 2, "green": 1, "blue": 1}
    assert staged.computed_labels == {"red": 1, "green": 1}
    assert (staged.num_checked, len(staged.differing)) == (1, 1)
    [[known, recomputed, others]] = compared
    labels = [rows_.column("label").to_pylist() for rows_ in (known, recomputed, others)]
    assert labels == [["blue"], ["green"], ["red", "blue"]]
    [path] = list_staged(store, "staging").values()
    assert read_footer(store, path.path).num_carried == 2
    assert pq.read_table(tmp_path / path.path).column("label").to_pylist() == [
        *("red", "red", "green", "blue")
    ]
    with pytest.raises(InfraError, match="slice 7-10-14: has 4 rows, expected 2"):
        writer.write(key, {}, rows, aside)


def test_the_first_of_two_attempts_by_name_counts(tmp_path: Path):
    store, key = Store(str(tmp_path)), SliceKey(0, 0, 4, is_last=True)
    writer = StagingWriter(store, "staging", "r", "zstd", {})
    names = sorted(writer.write(key, {}, rows_of(4)).name for _ in range(3))
    store.put("staging/notes.txt", b"")
    files = list_staged(store, "staging")
    assert {staged_key: file.path for staged_key, file in files.items()} == {
        key: f"staging/{names[0]}"
    }


def test_parts_of_other_runs_of_a_published_plan_stay(tmp_path: Path):
    store, layout = Store(str(tmp_path)), Layout("p")
    published, other = (layout.compacted("f", version) for version in ("000002-a", "000002-b"))
    folder = layout.staging("f")
    for path in (f"{folder}/0.parquet", f"{published}/1.parquet", f"{other}/1.parquet"):
        store.put(path, b"")
    discard_staged(store, folder, published)
    assert [file.path for file in store.list_files(folder)] == [f"{other}/1.parquet"]


def test_a_part_that_was_not_staged_is_refused(tmp_path: Path):
    store = Store(str(tmp_path))
    pq.write_table(rows_of(4), tmp_path / "x.parquet")
    with pytest.raises(InfraError, match=r"x\.parquet: is damaged \(it is not a staged part of"):
        read_footer(store, "x.parquet")


def test_each_damaged_bit_of_a_staged_part_is_found(tmp_path: Path):
    store, key = Store(str(tmp_path)), SliceKey(0, 0, 40, is_last=True)
    rows = slice_table(Rows(rows_per_slice=40), 0)
    StagingWriter(store, "s", "r", "zstd", {}).write(key, {}, rows)
    path = list_staged(store, "s")[key].path
    data = store.read_bytes(path)
    footer_at = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for at in [*range(0, len(data), 61), *range(len(data) - 9, len(data))]:
        store.put(path, data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        assert [*find_damaged(store, [path])] == [path]
        if at >= footer_at:
            assert [*read_footers(store, [path])] == [None]
        with contextlib.suppress(DamagedPart):  # bytes without a page checksum hold no value
            assert read_columns(store, path).equals(rows), at
    store.put(path, data)
    assert not find_damaged(store, [path])


def test_the_footer_has_the_counts_and_counters_of_the_slice(tmp_path: Path):
    store, key = Store(str(tmp_path)), SliceKey(0, 0, 10, is_last=True)
    rows = slice_table(Rows(rows_per_slice=10, fail_every=4), 0)
    writer = StagingWriter(store, "staging", "r", "zstd", {"pipeline.model": "m"}, ("score",))
    counters: Counters = {"read": StageCounters(10, 10, busy_s=3.0).to_dict()}
    before = time.perf_counter()
    staged = writer.write(key, counters, rows)
    passed_s = time.perf_counter() - before
    path = f"staging/{staged.name}"
    footer = read_footer(store, path)
    assert (footer.run_id, footer.num_rows, footer.name) == ("r", 10, staged.name)
    assert footer.reasons == staged.reasons == {"truncated": 2}
    assert footer.labels == staged.labels == {"cat": 3, "dog": 2, "fox": 3}
    assert (footer.num_quarantined, footer.numbers) == (2, staged.numbers)
    assert [*footer.numbers] == ["score"]
    (cause,) = footer.causes
    assert (cause["reason"], cause["stage"], cause["num_rows"]) == ("truncated", "decode", 2)
    assert footer.counters["read"] == counters["read"]
    written = StageCounters.from_dict(footer.counters["write"])
    assert (written.rows_in, written.rows_out, written.rows_quarantined) == (10, 10, 0)
    assert (written.bytes_in, written.retries) == (rows.nbytes, 0)
    assert 0 < written.bytes_out < (tmp_path / path).stat().st_size
    # The footer cannot know how long its own put took.
    assert 0 < written.busy_s < staged.counters["write"]["busy_s"] <= passed_s
    metadata = pq.read_metadata(tmp_path / path)
    assert metadata.metadata[b"pipeline.model"] == b"m"
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    assert metadata.row_group(0).column(0).statistics is None
    assert pq.read_table(tmp_path / path).equals(rows)


def test_fields_of_a_newer_version_in_a_footer_are_ignored():
    footer = StagedSlice("r", 3, "n", {"timeout": 1}, {"cat": 2})
    newer = json.dumps({**json.loads(footer.to_json()), "mood": "good"})
    assert StagedSlice.from_json(newer) == StagedSlice.from_json(footer.to_json()) == footer


@pytest.mark.parametrize(
    ("reasons", "is_without"),
    [
        ({"model_error": 4}, True),
        ({"model_error": 1, "timeout": 3}, True),
        ({"model_error": 3}, False),
        ({"timeout": 4}, False),
        ({}, False),
    ],
)
def test_a_slice_without_predictions_for_one_reason_is_recognised(
    reasons: dict[str, int], is_without: bool
):
    footer = StagedSlice("r", 4, reasons=reasons)
    assert footer.is_without_predictions_by(Reason.MODEL_ERROR) is is_without


def test_labels_of_counted_entries_are_counted_if_rows_have_no_label(tmp_path: Path):
    entry = pa.struct([("label", pa.string()), ("score", pa.float32())])
    entries = [
        [{"label": "cat", "score": 0.5}, {"label": "dog", "score": 0.4}],
        [],
        None,
        [{"label": "cat", "score": 0.3}],
    ]
    rows = rows_of(4).append_column("labels", pa.array(entries, pa.list_(entry)))
    rows = rows.append_column("size", pa.array([1.0, 2.0, None, 3.0], pa.float32()))
    rows = rows.append_column("other", pa.array(entries, pa.list_(entry)))
    key, store = SliceKey(0, 0, 4, is_last=True), Store(str(tmp_path))
    writer = StagingWriter(store, "staging", "r", "zstd", {}, ("size", "labels"))
    assert writer.write(key, {}, rows).labels == {"cat": 2, "dog": 1}
    assert StagingWriter(store, "staging", "r", "zstd", {}).write(key, {}, rows).labels == {}


def test_integers_that_hardly_repeat_are_stored_as_differences():
    columns: dict[str, Any] = {
        "often": [7] * 50,
        "rarely": [*range(50)],
        "text": [f"r{row}" for row in range(50)],
    }
    arguments = encodings(pa.table(columns))
    assert arguments["column_encoding"] == {"rarely": "DELTA_BINARY_PACKED"}
    assert arguments["use_dictionary"] == ["often"]
    assert encodings(pa.table({"often": [7] * 50}))["column_encoding"] is None


def test_a_row_without_folders_names_the_first_column_and_keeps_its_failure(tmp_path: Path):
    kinds, rooms = ["", "a", "b", "", "c"], ["x" * 300, "y" * 300, "b", "b", None]
    failures = [None, None, None, Failure(Reason.TIMEOUT, "predict", "too slow"), None]
    fields = [pa.field("kind", pa.string()), pa.field("room", pa.string())]
    schema = staged_schema([], fields)
    columns = {"row_id": [*"01234"], "uri": ["in"] * 5, "kind": kinds, "room": rooms}
    rows = pa.table({**columns, **failure_columns(failures)}, schema=schema)
    quarantined = quarantine_without_folder(rows, ("kind", "room"))
    assert quarantined.schema.equals(schema)
    assert quarantined["row_id"].to_pylist() == [*"01234"]
    assert quarantined["kind"].to_pylist() == [None, None, "b", "", "c"]
    assert quarantined["error"].to_pylist() == ["bad_schema", "bad_schema", None, "timeout", None]
    assert quarantined["error_stage"].to_pylist()[:4] == ["write", "write", None, "predict"]
    messages = quarantined["message"].to_pylist()
    assert messages[0].startswith("kind is empty text")
    assert messages[1].startswith("room has 300 characters")
    assert messages[3] == "too slow"
    writer = StagingWriter(Store(str(tmp_path)), "s", "r", "zstd", {}, folders=("kind", "room"))
    staged = writer.write(SliceKey(0, 0, 5, is_last=True), {}, rows)
    assert staged.reasons == {"bad_schema": 2, "timeout": 1}
    assert pq.read_table(tmp_path / "s" / staged.name)["error"].to_pylist() == (
        quarantined["error"].to_pylist()
    )
