"""Parquet columns in all the forms that data engineers write."""

from __future__ import annotations

import datetime as dt
import gc
import io
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.faults.watched_store import WatchedStore
from support.inputs.encoded import base_image, encode
from support.inputs.shard_columns import read_all, source_of

from pipeline.core.backoff import BadBlockError
from pipeline.core.errors import AccessDenied, JobError
from pipeline.core.hive_paths import hive_values
from pipeline.sources.features.vectors import feature_rows
from pipeline.sources.formats.parquet_footers import declare_columns, read_footers
from pipeline.sources.formats.parquet_shard import group_batches
from pipeline.sources.listing.inputs import Inputs, list_inputs
from pipeline.sources.reader import Stream
from pipeline.sources.rows import Reader
from pipeline.storage.store import Store

PNG = encode(base_image(1), "PNG")
IMAGES = [PNG, None, encode(base_image(2), "JPEG"), PNG]


def listed(uri: Path, **fields: Any) -> Inputs:
    return list_inputs(source_of(uri, **fields), max_extent_rows=3)


def read(uri: Path, **fields: Any) -> pa.Table:
    source = source_of(uri, **fields)
    return pa.concat_tables(read_all(listed(uri, **fields), source, 3))


def write(folder: Path, name: str = "a.parquet", **columns: Any) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(IMAGES, pa.binary()),
        pa.array(IMAGES, pa.large_binary()),
        pa.array(IMAGES, pa.binary()).dictionary_encode(),
        pa.array(
            [None if data is None else {"bytes": data, "path": "x.png"} for data in IMAGES],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        ),
        pa.array([{"bytes": data} for data in IMAGES], pa.struct([("bytes", pa.large_binary())])),
    ],
    ids=["binary", "large_binary", "dictionary", "struct", "struct_of_null"],
)
def test_encoded_images_read_the_same_however_they_are_stored(column: pa.Array, tmp_path: Path):
    write(tmp_path, image=column, other=["unread"] * 4)
    table = read(tmp_path)
    assert table["image"].to_pylist() == IMAGES
    assert table["error"].to_pylist() == [None, "null_input", None, None]


def test_features_join_columns_and_lists_in_the_declared_order(tmp_path: Path):
    lists = pa.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]], pa.list_(pa.float64(), 2))
    write(tmp_path, a=pa.array([10, 20, 30, 40], pa.int8()), v=lists, b=[True, False, True, True])
    table = read(tmp_path, features=("b", "v", "a"))
    assert table["features"].to_pylist() == [
        [1, 1, 2, 10],
        [0, 3, 4, 20],
        [1, 5, 6, 30],
        [1, 7, 8, 40],
    ]
    assert "image" not in table.column_names


def test_a_nan_that_is_no_null_is_kept_when_nulls_become_zero(tmp_path: Path):
    source = source_of(tmp_path, features=("a", "b"), null_features="zero")
    table = pa.table({"a": [float("nan"), 1.0], "b": [None, 2.0]})
    rows = feature_rows(source, table)
    np.testing.assert_array_equal(rows.values, [[np.nan, 0.0], [1.0, 2.0]])
    assert rows.nulls == {}


def test_hive_folders_give_pass_through_columns(tmp_path: Path):
    write(tmp_path, "day=2026-01-02/city=S%C3%A3o%20Paulo/a.parquet", image=[PNG, PNG])
    write(tmp_path, "day=2026-01-03/city=__HIVE_DEFAULT_PARTITION__/a.parquet", image=[PNG])
    table = read(tmp_path, pass_through=("city", "day"), casts={"day": "date32"})
    assert table["city"].to_pylist() == ["S\u00e3o Paulo", "S\u00e3o Paulo", None]
    assert table["day"].to_pylist() == [dt.date(2026, 1, 2)] * 2 + [dt.date(2026, 1, 3)]
    assert hive_values("a=b/c/d=e=f/x=y.parquet") == {"a": "b", "d": "e=f"}
    write(tmp_path, "day=some/a.parquet", image=[PNG, PNG])
    table = read(tmp_path, pass_through=("day",), casts={"day": "date32"})
    assert table["error"].to_pylist() == [None] * 3 + ["bad_schema"] * 2


def test_shards_that_differ_need_a_declared_cast(tmp_path: Path):
    write(tmp_path, "a.parquet", image=[PNG], n=pa.array([1], pa.int32()))
    write(tmp_path, "b.parquet", image=[PNG], n=["2"])
    undeclared = read(tmp_path, pass_through=("n",))
    assert undeclared["error"].to_pylist() == [None, "bad_schema"]
    assert "source.casts" in undeclared["message"].to_pylist()[1]
    declared = read(tmp_path, pass_through=("n",), casts={"n": "int64"})
    assert declared["error"].null_count == 2
    assert declared["n"].to_pylist() == [1, 2]


TEXT_TYPES = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int32(), pa.string()),
]
DAY = dt.datetime(2026, 1, 31)


@pytest.mark.parametrize("is_reversed", [False, True])
@pytest.mark.parametrize(
    ("columns", "dtype", "lost"),
    [
        ([pa.array([None, "7"], dtype) for dtype in TEXT_TYPES], pa.large_string(), []),
        ([pa.nulls(2), pa.array(["7", "8"])], pa.string(), []),
        ([pa.nulls(2), pa.array(["7"]).dictionary_encode()], None, []),
        ([pa.array([1], pa.int32()), pa.array([2**53 + 1]), pa.array([3], pa.uint8())],
         pa.int64(), []),
        ([pa.array([2**53, 2**53 + 1]), pa.array([1.5, None])], pa.float64(), [2**53 + 1]),
        ([pa.array([1.5], pa.float32()), pa.array([2], pa.int32())], pa.float64(), []),
        ([pa.array([DAY], pa.timestamp("s")), pa.array([DAY], pa.timestamp("us"))],
         pa.timestamp("us"), []),
        ([pa.array([Decimal("1.25")], pa.decimal128(10, 2)),
          pa.array([Decimal("1.2345")], pa.decimal128(12, 4))], pa.decimal128(12, 4), []),
        ([pa.array([[1]], pa.list_(pa.int32())), pa.array([[2**40]], pa.list_(pa.int64()))],
         pa.list_(pa.int64()), []),
    ],
)  # fmt: skip
def test_columns_of_shards_are_unified_and_keep_their_values(
    columns: list[pa.Array],
    dtype: pa.DataType | None,
    lost: list[Any],
    is_reversed: bool,
    tmp_path: Path,
):
    columns = columns[::-1] if is_reversed else columns
    for name, column in enumerate(columns):
        write(tmp_path, f"{name}.parquet", image=[PNG] * len(column), c=column)
    rows = read(tmp_path, pass_through=("c",))
    assert dtype is None or rows.schema.field("c").type == dtype
    given = [value for column in columns for value in column.to_pylist()]
    assert rows["c"].to_pylist() == [None if value in lost else value for value in given]
    assert rows["error"].to_pylist() == ["bad_schema" if v in lost else None for v in given]


@pytest.mark.parametrize("other", [pa.array([1.5]), pa.array(["x"])])
def test_columns_of_shards_that_no_type_holds_stay_apart(other: pa.Array, tmp_path: Path):
    write(tmp_path, "a.parquet", image=[PNG], c=pa.array([Decimal("1.25")]))
    write(tmp_path, "b.parquet", image=[PNG], c=other)
    rows = read(tmp_path, pass_through=("c",))
    assert rows["c"].to_pylist() == [Decimal("1.25"), None]
    assert "source.casts" in rows["message"].to_pylist()[1]


LIST_TYPES = [
    pa.list_(pa.float64()),
    pa.large_list(pa.float32()),
    pa.list_(pa.int64()),
    pa.list_(pa.float64(), 2),
]


@pytest.mark.parametrize("dtype", LIST_TYPES)
def test_lists_of_one_length_are_features(dtype: pa.DataType, tmp_path: Path):
    others = [[7, 8], [], [1, 2, 3], [None, 4]]
    write(tmp_path, "a.parquet", v=pa.array([None, [1, 2], [3, 4]], dtype), n=[5, 6, 7])
    write(tmp_path, "b.parquet", v=pa.array(others, pa.list_(pa.float64())), n=[8] * 4)
    write(tmp_path, "c.parquet", v=pa.nulls(1), n=[9])
    write(tmp_path, "d.parquet", v=[1.5], n=[9])
    rows = read(tmp_path, features=("n", "v"), pass_through=("n",))
    assert rows["error"].to_pylist() == [
        *("null_input", None, None),
        *(None, "bad_schema", "bad_schema", "null_input"),
        *("null_input", "bad_schema"),
    ]
    vectors = [v for v in rows["features"].to_pylist() if any(v)]
    assert vectors == [[6, 1, 2], [7, 3, 4], [8, 7, 8]]
    assert rows["message"][4].as_py() == "v has 0 numbers, expected 2"
    assert "v is double, in other shards 2 numbers" in rows["message"][8].as_py()


def test_lists_inside_structs_are_features_and_those_that_are_passed_through_stay(tmp_path: Path):
    lists = pa.array([[1.0], [2.0, 3.0]])
    write(tmp_path, s=pa.StructArray.from_arrays([lists], ["v"]))
    rows = read(tmp_path, features=("s.v",), pass_through={"v": "s.v"})
    assert rows["features"].to_pylist()[0] == [1]
    assert rows["v"].type == pa.list_(pa.float64())
    assert rows["v"].to_pylist() == [[1], [2, 3]]


@pytest.mark.parametrize(
    "error", [FileNotFoundError("gone"), AccessDenied("denied"), BadBlockError("bad block")]
)
def test_a_shard_that_is_lost_once_its_footer_was_read_leaves_the_length_to_the_next(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipeline.core.backoff.FIRST_WAIT_S", 0.0)
    for name in ("a.parquet", "b.parquet"):
        write(tmp_path, name, v=pa.array([[1.0, 2.0, 3.0]]))

    def lose(verb: str, path: str) -> None:
        if path == "a.parquet":
            raise error

    source, store = source_of(tmp_path, features=("v",)), Store(str(tmp_path))
    footers = read_footers(store, shards := store.list_files(), source)
    _, fields = declare_columns(WatchedStore(store.uri, watch=lose), source, shards, footers)
    assert fields.field("features").type.list_size == 3


def test_a_feature_whose_first_lists_are_empty_is_refused(tmp_path: Path):
    write(tmp_path, v=pa.array([[], None], pa.list_(pa.float64())))
    with pytest.raises(JobError, match=r"'v' has no numbers in the first rows of a\.parquet"):
        listed(tmp_path, features=("v",))


@pytest.mark.parametrize(
    ("fields", "column", "errors"),
    [
        ({"image_column": "c"}, pa.array([PNG]), ["null_input", None]),
        ({"text_column": "c"}, pa.array(["a"]), ["null_input", None]),
        ({"features": ("c",)}, pa.array([1.5]), ["null_input", None]),
        ({"features": ("c",), "null_features": "zero"}, pa.array([1.5]), [None, None]),
    ],
)
@pytest.mark.parametrize("names", ["ab", "ba"])
def test_a_shard_whose_input_is_null_alone_has_rows_without_input(
    fields: dict[str, Any], column: pa.Array, errors: list[str | None], names: str, tmp_path: Path
):
    write(tmp_path, f"{names[0]}.parquet", c=pa.nulls(1), d=[1])
    write(tmp_path, f"{names[1]}.parquet", c=column, d=[1])
    rows = read(tmp_path, pass_through=("d",), **fields)
    assert rows["error"].to_pylist() == (errors if names == "ab" else errors[::-1])


def test_named_files_are_read_in_their_order(tmp_path: Path):
    for name in ("a", "b", "c"):
        write(tmp_path / "in", f"{name}.parquet", image=[PNG])
    names = ["c.parquet", "a.parquet"]
    (tmp_path / "list.txt").write_text("\ufeff" + "\n".join(names) + "\n\n")  # as Windows writes
    for files in (tuple(names), str(tmp_path / "list.txt")):
        table = read(tmp_path / "in", files=files)
        assert table["row_id"].to_pylist() == ["c.parquet#0", "a.parquet#0"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"files": ("a.parquet", "a.parquet")}, "named twice"),
        ({"casts": {"n": "int64"}}, "no column of source.pass_through"),
        ({"pass_through": ("n",), "casts": {"n": "integer"}}, "no Arrow type"),
        ({"features": ("image",)}, "expected numbers"),
        ({"features": ("n", "m")}, "no column 'm'"),
        ({"uri_column": "n"}, "expected URIs as text"),
        ({"image_column": "picture"}, r"a\.parquet.*no column 'picture'; it has image, n, t, tags"),
        ({"image_column": "n"}, "column 'n' is int64, expected encoded images as binary"),
        ({"image_column": "n", "image_encoding": "base64"}, "expected images in base64 as text or"),
        ({"image_column": "t"}, "a column of texts is named by text_column, of URIs by uri_column"),
        ({"image_column": "t"}, "in base64 by image_encoding: base64"),
        ({"id_column": "key"}, "no column 'key'"),
        ({"id_column": "image"}, "column 'image' is binary, expected text or numbers"),
        ({"id_column": "tags"}, "column 'tags' is list<element: string>, expected text or"),
        ({"pass_through": ("n", "camera")}, "no column 'camera'"),
        ({"text_column": "word"}, "no column 'word'; it has image, n, t, tags, photo"),
        ({"text_column": "tags.x"}, "tags is list<element: string>, which has no fields"),
        ({"image_column": "photo.byte"}, "photo has no such field; it has bytes, by"),
        ({"image_column": "photo.by"}, "column 'photo.by' is string, expected encoded images"),
        ({"pass_through": ("photo.x",)}, "photo has no such field"),
        ({"text_column": "n"}, "column 'n' is int64, expected text"),
        ({"text_column": "t", "text_pair_column": "m"}, "no column 'm'"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(source: dict[str, Any], words: str, tmp_path: Path):
    photo = [{"bytes": PNG, "by": "me"}]
    write(tmp_path, image=[PNG], n=[1], t=["a"], tags=[["a"]], photo=photo)
    with pytest.raises((JobError, ValueError), match=words):
        listed(tmp_path, **source)


def test_uris_are_published_as_the_input_has_them(tmp_path: Path) -> None:
    names = ["two  spaces .jpg", "/".join(["d" * 100] * 6) + "/a.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    pq.write_table(pa.table({"at": names}), tmp_path / "0.parquet")

    rows = read(tmp_path / "0.parquet", uri_column="at", uri_base=str(tmp_path))

    assert rows["uri"].to_pylist() == names


def test_uris_that_are_no_text_and_lines_in_them_stay_harmless(tmp_path: Path) -> None:
    raw = pa.array([b"\xff\xfe.jpg", b"a\nforged.jpg", b"https://u:hush@h/x", None], pa.binary())
    write(tmp_path, at=pa.Array.from_buffers(pa.string(), 4, raw.buffers()))
    rows = read(tmp_path, uri_column="at")
    reasons = ["missing", "forbidden_uri", "forbidden_uri", "null_input"]
    assert rows["error"].to_pylist() == reasons
    uris = rows["uri"].to_pylist()
    assert uris[1] == "a\nforged.jpg", "as the input has it"
    assert uris[3] == str(tmp_path / "a.parquet")
    assert "\n" not in "".join(rows["message"].to_pylist())
    assert "hush" not in str(rows.to_pylist())


def test_nothing_is_read_behind_the_last_row_that_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_read = 0

    def counted(*args: Any) -> Iterator[pa.RecordBatch]:
        nonlocal num_read
        for batch in group_batches(*args):
            num_read += batch.num_rows
            yield batch

    for name in "ab":
        pq.write_table(pa.table({"n": range(1_000_000)}), tmp_path / f"{name}.parquet")
    source = source_of(tmp_path, features=("n",))
    inputs = list_inputs(source, max_extent_rows=1_000_000)
    reader = Reader(Store(inputs.root), source, inputs.pass_through, inputs.fields)
    monkeypatch.setattr("pipeline.sources.formats.parquet_shard.group_batches", counted)
    stream = Stream(reader, [extent.choose([5, 9]) for extent in inputs.extents])
    assert stream.take(4, 2**20)["row_id"].to_pylist() == [
        f"{x}.parquet#{n}" for x in "ab" for n in (5, 9)
    ]
    assert num_read < 1_500_000


def _live() -> int:
    types = Counter(map(type, gc.get_objects()))
    held = (pq.FileMetaData, io.RawIOBase, OSError)
    return sum(number for held_type, number in types.items() if issubclass(held_type, held))


def test_nothing_of_a_footer_stays_in_memory_once_its_shard_is_listed(tmp_path: Path) -> None:
    columns = {f"c{index}": pa.array([0.5] * 8, pa.float32()) for index in range(3)}
    for number in range(20):
        pq.write_table(pa.table(columns), tmp_path / f"{number}.parquet", row_group_size=4)
    fields = {"features": tuple(columns)}

    listed(tmp_path, **fields)
    gc.collect()
    gc.disable()  # a command collects seldom
    try:
        before = _live()
        inputs = listed(tmp_path, **fields)
        after = _live()
    finally:
        gc.enable()

    assert inputs.num_rows == 160
    assert after <= before
