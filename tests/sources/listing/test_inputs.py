"""Listing: which files are shards, what their footers contain, and what broken shards become."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.servers.faultproxy import DENIED, FaultProxy, Rule
from support.servers.object_stores import S3Server

from pipeline.core.errors import InputMissing, JobError
from pipeline.core.failures import Reason
from pipeline.core.schema import RESERVED_COLUMNS
from pipeline.job.source import Source
from pipeline.sources.listing.inputs import Inputs, describe_no_input, list_inputs, split_glob
from pipeline.sources.listing.refused import refuse_tables
from pipeline.sources.units import Unit
from pipeline.storage.store import Store


def listed(uri: str | Path, form: Any, *, rows: int = 100, **fields: Any) -> Inputs:
    return list_inputs(Source(uri=str(uri), format=form, **fields), max_extent_rows=rows)


def paths(inputs: Inputs) -> list[str]:
    return [shard.path for shard in inputs.shards]


def shards(folder: Path, *tables: Mapping[str, Any], row_group_size: int = 4) -> Path:
    """Write one shard per table, from s0.parquet on."""
    folder.mkdir(exist_ok=True)
    for index, columns in enumerate(tables):
        path = folder / f"s{index}.parquet"
        pq.write_table(pa.table(dict(columns)), path, row_group_size=row_group_size)
    return folder


def images(count: int) -> list[bytes]:
    return [b"x" * 50] * count


@pytest.mark.parametrize(("form", "name"), [("images", "a.jpg"), ("webdataset", "a.tar")])
def test_who_may_list_but_not_read_hears_of_it_at_once(s3: S3Server, form: str, name: str):
    direct = s3.store()
    for prefix in ("", "b/", "c/"):
        direct.put(prefix + name, b"x")
    with FaultProxy(s3.endpoint_url, Rule(DENIED, "GET|HEAD", rf"/{name}", last=99)) as proxy:
        with pytest.raises(JobError, match=rf"{name}: access denied"):
            listed(direct.uri, form, storage_options=s3.options_at(proxy.url))
        denied = [action for _, _, action in proxy.requests if action == DENIED]
    assert len(denied) == 3, "an access error is not retried"


FILES = {
    "a.jpg": b"12345",
    "b/c.JPEG": b"1",
    "b/d.png": b"12",
    "b/d/e.webp": b"123",
    "b/notes.txt": b"text",
    "b/.hidden.jpg": b"1",
    ".cache/f.jpg": b"1",
    "_SUCCESS": b"",
    "b/_temporary/g.jpg": b"1",
    "b/_DSC0001.JPG": b"12",
    "z.parquet": b"1",
}


IN_B = ["b/_DSC0001.JPG", "b/c.JPEG", "b/d.png"]


@pytest.mark.parametrize(
    ("pattern", "wanted", "skipped"),
    [
        ("", ["a.jpg", *IN_B, "b/d/e.webp"], {"extension": 2, "hidden": 2, "marker": 2}),
        ("*.jpg", ["a.jpg"], {}),
        ("*", ["a.jpg"], {"extension": 1, "marker": 1}),
        ("b/*", IN_B, {"extension": 1, "hidden": 1}),
        ("b/**", [*IN_B, "b/d/e.webp"], {"extension": 1, "hidden": 1, "marker": 1}),
        ("**/*.png", ["b/d.png"], {}),
        ("b/[cd].*", ["b/c.JPEG", "b/d.png"], {}),
        ("b/?.png", ["b/d.png"], {}),
        ("b/none*", [], {}),
        ("a.jpg", ["a.jpg"], {}),
    ],
)
def test_folders_globs_and_single_files_name_their_shards(
    pattern: str, wanted: list[str], skipped: dict[str, int], usual_store: Store
):
    for path, data in FILES.items():
        usual_store.put(path, data)
    options = dict(usual_store.storage_options)
    inputs = listed(usual_store.url(pattern), "images", storage_options=options)
    root = Store(inputs.root, options)
    shown = [root.url(path).removeprefix(usual_store.url("") + "/") for path in paths(inputs)]
    assert shown == wanted
    assert [root.read_bytes(path) for path in paths(inputs)] == [FILES[name] for name in wanted]
    assert inputs.skipped.files == skipped
    if not pattern:
        assert inputs.skipped.total + len(inputs.shards) == len(FILES), (
            "every file is accounted for"
        )
        assert inputs.skipped.extensions == {".parquet": 1, ".txt": 1}
        assert inputs.skipped.first["extension"] == ("b/notes.txt", "z.parquet")


@pytest.mark.parametrize(
    ("uri", "root", "pattern"),
    [
        ("in/photos", "in/photos", ""),
        ("in/photos/", "in/photos", ""),
        ("in/*.jpg", "in", "*.jpg"),
        ("in/2026-*/x/?.jpg", "in", "2026-*/x/?.jpg"),
        ("s3://lake/in/**/*.jpg", "s3://lake/in", "**/*.jpg"),
        ("/*", "/", "*"),
        ("/", "/", ""),
        ("*.jpg", ".", "*.jpg"),
    ],
)
def test_a_glob_is_split_before_its_first_open_segment(uri: str, root: str, pattern: str):
    assert split_glob(uri) == (root, pattern)


def test_a_folder_that_is_named_like_a_glob_is_a_folder(any_store: Store):
    for path in ("br[1]/a.jpg", "br[1]/in?/b.jpg", "br1/c.jpg", "br2/d.jpg", "e[1].jpg"):
        any_store.put(path, b"x")
    options = dict(any_store.storage_options)
    for uri, wanted in {
        "br[1]": ["a.jpg", "in?/b.jpg"],
        "br[1]/*.jpg": ["a.jpg"],
        "br[1]/in?": ["b.jpg"],
        "br[1]/in?/*": ["b.jpg"],
        "br[2]/*": ["br2/d.jpg"],
        "e[1].jpg": ["e[1].jpg"],
    }.items():
        inputs = listed(any_store.url(uri), "images", storage_options=options)
        assert paths(inputs) == wanted, uri


def test_stars_within_a_segment_are_refused_in_one_line(tmp_path: Path):
    with pytest.raises(JobError, match=r"source\.uri: 'a\*\*b': `\*\*` has to be a whole segment"):
        listed(tmp_path / "a**b", "images")


def test_an_entry_of_any_kind_is_input_or_counted(tmp_path: Path):
    source, outside = tmp_path / "in", tmp_path / "elsewhere"
    for folder in (source / "sub", outside):
        folder.mkdir(parents=True)
    (outside / "photo.jpg").write_bytes(b"12")
    (source / "a.jpg").write_bytes(b"1")
    (source / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"1")
    (source / os.fsdecode(b"caf\xe9")).mkdir()
    (source / os.fsdecode(b"caf\xe9") / "b.jpg").write_bytes(b"1")
    os.mkfifo(source / "pipe.jpg")
    for name, target in {
        "out.jpg": outside / "photo.jpg",
        "sub/chain.jpg": "../out.jpg",
        "folder": outside,
        "circle.jpg": source,
        "self.jpg": "self.jpg",
        "gone.jpg": outside / "none.jpg",
        "pipe2.jpg": "pipe.jpg",
        "null.jpg": "/dev/null",
        "..data": outside,
        "notes.txt": outside / "photo.jpg",
    }.items():
        (source / name).symlink_to(target)
    inputs = listed(source, "images")
    assert paths(inputs) == ["a.jpg", "out.jpg", "sub/chain.jpg"]
    assert inputs.skipped.files == {
        "extension": 1,
        "hidden": 1,
        "link_to_folder": 2,
        "broken_link": 2,
        "special_file": 3,
        "not_utf8": 2,
    }
    assert inputs.skipped.first["not_utf8"] == (r"caf\xe9.jpg", r"caf\xe9/b.jpg")
    assert inputs.num_bytes == 1 + 2 + 2, "a link counts as its target"
    unfollowed = listed(source, "images", follow_links=False)
    assert paths(unfollowed) == ["a.jpg"]
    assert unfollowed.skipped.files == {"hidden": 1, "link": 9, "special_file": 1, "not_utf8": 2}


def test_a_link_to_a_folder_that_a_glob_would_look_into_is_counted(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").write_bytes(b"1")
    (tmp_path / "alias").symlink_to("real")
    assert listed(tmp_path / "*" / "*.jpg", "images").skipped.files == {"link_to_folder": 1}
    assert listed(tmp_path / "*.jpg", "images").skipped.files == {}
    assert paths(listed(tmp_path / "alias" / "*.jpg", "images")) == ["a.jpg"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.XMP", "*.XMP matches 3 files, none read: format images reads .jpg"),
        ("*.XMP", "; skipped: 3 .xmp"),
        ("*.png", "*.png matches 1 file, none read: skipped: 1 not_utf8"),
        ("*.none", "*.none matches no file; a glob names files, as in **/*.jpg"),
        ("empty", "empty holds no files"),
    ],
)
def test_where_there_is_no_input_it_is_said_what_is_there(
    pattern: str, expected: str, tmp_path: Path
):
    for number in range(3):
        (tmp_path / f"{number}.XMP").write_bytes(b"1")
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"1")
    (tmp_path / "empty").mkdir()
    source = Source(uri=str(tmp_path / pattern), format="images")
    inputs = list_inputs(source, max_extent_rows=1)
    assert inputs.shards == ()
    assert expected in describe_no_input(source, inputs.skipped)


def test_a_folder_that_is_not_there_is_missing_and_an_empty_one_has_no_rows(tmp_path: Path):
    with pytest.raises(InputMissing, match=r"source\.uri = .*none: no such file or folder"):
        listed(tmp_path / "none", "images")
    with pytest.raises(InputMissing, match=r"source\.uri = .*none: no such file or folder"):
        listed(tmp_path / "none" / "*.jpg", "images")
    assert listed(f"{tmp_path}/*.jpg", "images").num_rows == 0
    assert listed(tmp_path, "images").num_rows == 0
    assert listed(tmp_path, "parquet").num_rows == 0


def test_a_prefix_without_objects_is_missing_unless_it_may_be_empty(s3: S3Server):
    store = s3.store()
    source = Source(uri=store.uri, format="images", storage_options=store.storage_options)
    with pytest.raises(InputMissing, match="no object there; run again when it is there"):
        list_inputs(source, max_extent_rows=1)
    assert list_inputs(source, max_extent_rows=1, may_be_empty=True).shards == ()
    store.put("notes.txt", b"?")
    assert list_inputs(source, max_extent_rows=1).shards == ()


@pytest.mark.parametrize(
    ("log", "what"),
    [
        ("_delta_log/00000000000000000000.json", "a Delta table"),
        ("metadata/00001-5f.metadata.json", "an Iceberg table"),
        ("metadata/v3.gz.metadata.json", "an Iceberg table"),
        (".hoodie/hoodie.properties", "a Hudi table"),
        ("day=1/.hoodie_partition_metadata", "a Hudi table"),
    ],
)
def test_the_files_of_a_lake_table_are_not_read_as_loose_files(
    log: str, what: str, usual_store: Store
):
    for path in (f"db/t/{log}", "db/photo.jpg", "other/a.parquet"):
        usual_store.put(path, b"{}")
    for path in ("db/t/day=1/a.parquet", "db/t/data/day=1/a.parquet"):
        pq.write_table(pa.table({"image": images(1)}), sink := pa.BufferOutputStream())
        usual_store.put(path, sink.getvalue().to_pybytes())
    options = dict(usual_store.storage_options)
    for uri in ("", "db", "db/t", "db/t/day=1", "db/*/day=*/*.parquet"):
        with pytest.raises(JobError, match=rf"db/t\S* holds the files of {what}, .*source.files"):
            listed(usual_store.url(uri), "parquet", storage_options=options)
    assert paths(listed(usual_store.url(""), "images", storage_options=options)) == ["db/photo.jpg"]
    named = {"files": ("db/t/day=1/a.parquet",), "storage_options": options}
    assert len(listed(usual_store.url(""), "parquet", **named).extents) == 1
    one = listed(usual_store.url("db/t/day=1/a.parquet"), "parquet", storage_options=options)
    assert paths(one) == ["a.parquet"], "named by hand"


@pytest.mark.parametrize("uri", ["s3://data", "s3://k=v", "/data"])
def test_nothing_is_above_a_bucket_and_the_root_above_its_folders(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "_delta_log").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.parquet").touch()
    refuse_tables(Store(uri), Store(str(tmp_path)).list_files(), [])


def test_the_refusal_of_a_delta_table_names_the_format_that_reads_its_live_rows(tmp_path: Path):
    deltalake = pytest.importorskip("deltalake")
    table = str(tmp_path / "table")
    deltalake.write_deltalake(table, pa.table({"text": ["a", "b", "c"]}))
    deltalake.DeltaTable(table).delete("text = 'b'")
    with pytest.raises(JobError) as refusal:
        listed(table, "parquet")
    [uri, name] = re.findall(
        r"set source.uri to (\S+) and source.format: (\w+)", str(refusal.value)
    )[0]
    assert listed(uri, name, text_column="text").num_rows == 2


@pytest.mark.parametrize("other", ["./x/s0.parquet", "x/s0.parquet/", "x//s0.parquet"])
def test_a_shard_has_one_spelling_however_it_is_named(other: str, usual_store: Store):
    pq.write_table(pa.table({"image": images(1)}), sink := pa.BufferOutputStream())
    usual_store.put("x/s0.parquet", sink.getvalue().to_pybytes())
    options = dict(usual_store.storage_options)
    if "//" not in other or not usual_store.is_object_store:
        one = listed(usual_store.url(), "parquet", files=(other,), storage_options=options)
        assert paths(one) == ["x/s0.parquet"]
        names = ("x/s0.parquet", other)
        with pytest.raises(JobError, match=r"x/s0\.parquet is named twice"):
            listed(usual_store.url(), "parquet", files=names, storage_options=options)
    for outside in ("/x/s0.parquet", "x/../x/s0.parquet"):
        with pytest.raises(JobError, match="must stay below"):
            listed(usual_store.url(), "parquet", files=(outside,), storage_options=options)


def test_named_shards_that_are_not_there_are_missing_input(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(b"?")
    with pytest.raises(InputMissing, match=r"1 of 2 are missing, first .*b\.jpg"):
        listed(tmp_path, "images", files=("a.jpg", "b.jpg"))
    with pytest.raises(JobError, match="no such file"):
        listed(tmp_path, "images", files=str(tmp_path / "none.txt"))


def test_row_groups_are_joined_up_to_the_limit_and_empty_ones_dropped(tmp_path: Path):
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema([("image", pa.binary())])) as writer:
        for num_rows in (3, 0, 4, 10, 1, 1, 30, 4, 6):
            writer.write_table(pa.table({"image": pa.array(images(num_rows), pa.binary())}))
    inputs = listed(tmp_path, "parquet", rows=10)
    cut = [(extent.first_row, extent.num_rows) for extent in inputs.extents]
    assert cut == [(0, 7), (7, 10), (17, 2), (19, 30), (49, 10)]


def test_only_the_columns_that_are_read_count_as_row_bytes(tmp_path: Path):
    data = [bytes([i % 251]) * 1000 for i in range(20)]
    for name in ("image", "a.dotted.image"):
        folder = tmp_path / name
        shards(folder, {name: data, "heavy": [b"y" * 50_000] * 20}, row_group_size=20)
        (extent,) = listed(folder, "parquet", image_column=name).extents
        assert 900 < extent.row_bytes < 1500


def test_a_shard_without_a_readable_footer_is_one_row_with_a_reason(tmp_path: Path):
    shards(tmp_path, {"image": images(6)}, {"image": images(6)}, {"image": images(2)})
    cut = (tmp_path / "s1.parquet").read_bytes()[:-20]
    (tmp_path / "s1.parquet").write_bytes(cut)
    (tmp_path / "s3.parquet").write_bytes(b"")
    (tmp_path / "s4.parquet").write_bytes(b"PAR1 is not enough PAR1")
    inputs = listed(tmp_path, "parquet")
    rows = {e.path: (e.num_rows, e.reason, e.is_whole_shard) for e in inputs.extents}
    broken = (1, Reason.UNREADABLE_SHARD, True)
    assert rows == {
        "s0.parquet": (6, None, False),
        "s1.parquet": broken,
        "s2.parquet": (2, None, False),
        "s3.parquet": broken,
        "s4.parquet": broken,
    }
    assert all(extent.message for extent in inputs.extents if extent.reason)
    unit = Unit(0, tuple(inputs.extents), (0, inputs.num_rows or 0))
    assert [unit.place_of(row) for row in (5, 6, 7, 9)] == [
        ("s0.parquet", 5), ("s1.parquet", None), ("s2.parquet", 0), ("s3.parquet", None)
    ]  # fmt: skip


@pytest.mark.parametrize("missing", ["image", "id", "camera"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_column_that_some_shards_lack_costs_their_rows(missing: str, place: int, tmp_path: Path):
    whole = {"image": images(5), "id": [*"abcde"], "camera": ["n"] * 5}
    tables = [dict(whole) for _ in range(3)]
    del tables[place][missing]
    tables[place]["other"] = [1] * 5
    shards(tmp_path, *tables, row_group_size=2)
    inputs = listed(tmp_path, "parquet", rows=2, id_column="id", pass_through=("camera",))
    assert inputs.num_rows == 15
    for extent in inputs.extents:
        is_bad = extent.path == f"s{place}.parquet"
        assert extent.reason == (Reason.BAD_SCHEMA if is_bad else None)
        assert not extent.is_whole_shard
        assert missing in extent.message or not is_bad


@pytest.mark.parametrize("name", sorted(RESERVED_COLUMNS))
def test_a_pass_through_column_must_not_hide_one_of_the_output(name: str, tmp_path: Path):
    shards(tmp_path, {"picture": images(2), name: [1, 2]})
    with pytest.raises(JobError, match=f"{name} is a column that the output makes"):
        listed(tmp_path, "parquet", image_column="picture", pass_through=(name,))


def test_pass_through_columns_become_nullable_and_lose_their_metadata(tmp_path: Path):
    field = pa.field("n", pa.int32(), nullable=False, metadata={"from": "elsewhere"})
    schema = pa.schema([pa.field("image", pa.binary()), field])
    pq.write_table(pa.table({"image": images(2), "n": [1, 2]}, schema=schema), tmp_path / "a.pq")
    (field,) = listed(tmp_path, "parquet", pass_through=("n",)).pass_through
    assert field.equals(pa.field("n", pa.int32()), check_metadata=True)
