"""Promise: each value of a partition column has its folder, in input order, published at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow as pa
import pytest
from support.runs.published import (
    DAY,
    Rows,
    prepare_version,
    publish_rows,
    read_part_table,
    run_here,
    slice_table,
    snapshot,
)
from support.runs.published_rows import read_predictions

from pipeline.commit.layout import Layout, part_target
from pipeline.commit.manifest import Manifest, current_manifest
from pipeline.commit.parts.compaction import Compacted, Compactor
from pipeline.commit.parts.partition_columns import compact_by_value
from pipeline.commit.publish import commit, rollback, sync_published_folder
from pipeline.commit.staging import StagingWriter, quarantine_without_folder
from pipeline.core.errors import GateRefused
from pipeline.core.failures import failure_columns
from pipeline.core.hive_paths import MAX_VALUES, values_of
from pipeline.core.schema import CLASSIFY_FIELDS, prediction_schema, staged_schema
from pipeline.core.slices import SliceKey
from pipeline.published.describe import describe_output
from pipeline.published.verify import verify_output
from pipeline.storage.store import Store

LAYOUT = Layout(DAY)
FOLDERS = (LAYOUT.predictions, LAYOUT.quarantine)
KINDS = ("a/b", "..", None, "50% off", "a=b", " ", "\u00e9", "__HIVE_DEFAULT_PARTITION__")
ROWS = Rows(
    rows_per_slice=16, num_slices=5, fail_every=7, kinds=KINDS, partition_columns=("kind", "label")
)


def good_rows(rows: Rows) -> pa.Table:
    """The predictions of `rows`, in input order."""
    tables = [slice_table(rows, index) for index in range(rows.num_slices)]
    everything = pa.concat_tables(tables)
    names = prediction_schema(list(rows.pass_through), CLASSIFY_FIELDS).names
    return everything.filter(pa.compute.is_null(everything["error"])).select(names)


def read(store: Store) -> pa.Table:
    return read_predictions(store.uri, DAY, storage_options=dict(store.storage_options))


def verify(store: Store) -> None:
    verify_output(store.uri, DAY, dict(store.storage_options))


def folders_of(manifest: Manifest) -> list[str]:
    return [
        part.path.rpartition("/")[0].removeprefix(LAYOUT.predictions) for part in manifest.parts
    ]


def test_every_value_has_a_folder_with_its_rows_in_input_order(any_store: Store):
    manifest = publish_rows(any_store, rows=ROWS)
    verify(any_store)
    expected = good_rows(ROWS).to_pylist()
    seen = 0
    for part in manifest.parts:
        rows = read_part_table(any_store, part)
        assert rows.column_names == ["row_id", "uri", "edition", "label_id", "score", "top_k"]
        values = values_of(part.path, manifest.partition_columns)
        in_folder = [row for row in expected if all(row[k] == v for k, v in values.items())]
        assert rows.to_pylist() == [{k: row[k] for k in rows.column_names} for row in in_folder]
        assert in_folder
        seen += len(in_folder)
    assert seen == len(expected) == manifest.num_predicted
    numbers = [part.path.rpartition("part-")[2][:5] for part in manifest.parts]
    assert numbers == [f"{index:05d}" for index in range(len(manifest.parts))]
    assert folders_of(manifest) == sorted(folders_of(manifest))
    by_id = {row["row_id"]: row for row in read(any_store).to_pylist()}
    assert by_id == {row["row_id"]: row for row in expected}
    description = describe_output(any_store.uri, DAY, dict(any_store.storage_options))
    assert sum(row["rows"] for row in description["labels"]) == len(expected)
    assert {row["column"] for row in description["schema"]} == set(good_rows(ROWS).column_names)


def test_versions_with_different_folders_replace_each_other_and_can_be_restored(usual_store: Store):
    plain = dataclasses.replace(ROWS, edition=1, partition_columns=())
    in_folders = dataclasses.replace(ROWS, edition=2, partition_columns=("kind",))
    versions = [plain, in_folders, dataclasses.replace(ROWS, edition=3)]
    manifests = [publish_rows(usual_store, rows=rows, keep_versions=3) for rows in versions]
    for number, rows in ((2, in_folders), (1, plain), (3, versions[2])):
        back = rollback(usual_store, LAYOUT, "r", keep_versions=6, to_number=number)
        verify(usual_store)
        assert back.partition_columns == manifests[number - 1].partition_columns
        assert folders_of(back) == folders_of(manifests[number - 1])
        assert [p.sha256 for p in back.parts] == [p.sha256 for p in manifests[number - 1].parts]
        assert set(read(usual_store)["edition"].to_pylist()) == {rows.edition}
        present = set(snapshot(usual_store, *FOLDERS)) - {LAYOUT.success}
        assert present == {part.path for part in back.all_parts}


def test_files_of_a_crashed_attempt_are_tidied_up_in_their_folders(usual_store: Store):
    publish_rows(usual_store, rows=ROWS)
    other = dataclasses.replace(ROWS, edition=2)
    crashed, folder = prepare_version(usual_store, LAYOUT, other, 2, "crashed")
    for part in crashed.parts:
        usual_store.copy(f"{folder}/{part.path}", f"predictions/{DAY}/{part.path.split('/', 1)[1]}")
    ours, our_folder = prepare_version(usual_store, LAYOUT, other, 2, "ours")
    sync_published_folder(usual_store, LAYOUT, commit(usual_store, LAYOUT, ours, our_folder), 2)
    verify(usual_store)


def test_a_folder_that_is_not_ours_is_left_alone(usual_store: Store):
    first = publish_rows(usual_store, rows=ROWS)
    copy = f"{LAYOUT.predictions}/backup/{first.parts[0].path.rpartition('/')[2]}"
    usual_store.copy(first.parts[0].path, copy)
    assert part_target(copy) is not None
    publish_rows(usual_store, rows=dataclasses.replace(ROWS, edition=2))
    assert usual_store.exists(copy)


def test_no_rows_still_make_one_part_with_every_column(usual_store: Store):
    rows = dataclasses.replace(ROWS, num_slices=0)
    manifest = publish_rows(usual_store, rows=rows)
    verify(usual_store)
    (part,) = manifest.parts
    assert part.path.count("/") == 2
    assert read(usual_store).schema.names == good_rows(ROWS).column_names


def stage_values(store: Store, values: list[list[int]]) -> list[tuple[SliceKey, str, float]]:
    """One slice for each list, sized so that two of them make a group."""
    fields = [pa.field("place", pa.int32())]
    schema = staged_schema(fields, CLASSIFY_FIELDS)
    writer = StagingWriter(store, "staging", "r", "zstd", {})
    start, keys = 0, []
    for places in values:
        columns = {
            "row_id": [f"{start + row:08d}" for row in range(len(places))],
            "uri": ["in"] * len(places),
            "place": places,
            **failure_columns([None] * len(places)),
        }
        nothing = {f.name: pa.nulls(len(places), f.type) for f in schema if f.name not in columns}
        keys.append(SliceKey(0, start, start + len(places), is_last=False))
        writer.write(keys[-1], {}, pa.table({**columns, **nothing}, schema=schema))
        start += len(places)
    files = store.list_files("staging")
    return [(key, file.path, 8.0 * 2**20) for key, file in zip(keys, files, strict=True)]


def by_place(store: Store, slices: list[tuple[SliceKey, str, float]], target: float) -> Compacted:
    schema = prediction_schema([pa.field("place", pa.int32())], CLASSIFY_FIELDS)
    compactor = Compactor(store, "out", "000001-0123456789ab", schema, "zstd", {}, target, store)
    return compact_by_value(compactor, ["place"], slices, (), {}, run_here)


def test_a_value_in_all_groups_is_one_file(tmp_path: Path):
    store = Store(str(tmp_path))
    # The first folders by name come with the last slices.
    places = [[max(row % 90, 11 - nth) for row in range(500)] for nth in range(12)]
    done = by_place(store, stage_values(store, places), 2.0**27)
    assert len(done.predictions) == 90
    everything = [place for slice_places in places for place in slice_places]
    ids: list[str] = []
    for part in done.predictions:
        table = read_part_table(store, dataclasses.replace(part, path=f"out/{part.path}"))
        place = int(values_of(part.path, {"place": "int32"})["place"])
        expected = [f"{row:08d}" for row, value in enumerate(everything) if value == place]
        assert table["row_id"].to_pylist() == expected
        ids += expected
    assert done.ranks is not None
    assert done.ranks.tolist() == [int(row) for row in ids]


def test_a_large_value_is_cut_near_the_target_size(tmp_path: Path):
    store = Store(str(tmp_path))
    rare = [[7 if row == 100 else 1 for row in range(20_000)] for _ in range(20)]
    parts = by_place(store, stage_values(store, rare), 60_000.0).predictions
    large = [part.size_bytes / 60_000 for part in parts if "place=1/" in part.path]
    assert len(large) > 3
    assert all(0.8 <= size <= 1.2 for size in large[:-1]), large
    assert sum("place=7/" in part.path for part in parts) == 1


def test_more_values_than_folders_are_refused_before_publishing(usual_store: Store):
    base = publish_rows(usual_store)
    before = snapshot(usual_store, *FOLDERS)
    rows = dataclasses.replace(ROWS, edition=2, partition_columns=("kind",))
    many = dataclasses.replace(
        rows, num_slices=1, rows_per_slice=1200, fail_every=0,
        kinds=tuple(str(number) for number in range(MAX_VALUES + 1)),
    )  # fmt: skip
    with pytest.raises(GateRefused, match=f"kind: .*{MAX_VALUES + 1} different values, at most"):
        publish_rows(usual_store, rows=many)
    assert snapshot(usual_store, *FOLDERS) == before
    assert current_manifest(usual_store, LAYOUT) == base


def test_values_are_counted_over_all_groups(tmp_path: Path):
    store = Store(str(tmp_path))
    half = MAX_VALUES // 2 + 1
    values = [list(range(half)), [], list(range(half, 2 * half))]
    slices = stage_values(store, [numbers for numbers in values if numbers])
    slices = [(key, path, 16.0 * 2**20) for key, path, _ in slices]
    with pytest.raises(GateRefused, match=f"place: {2 * half} different values"):
        by_place(store, slices, 2.0**27)


def test_rows_whose_values_can_name_folders_are_staged_unchanged():
    rows = slice_table(ROWS, 0)
    assert quarantine_without_folder(rows, ("kind", "label")) is rows
