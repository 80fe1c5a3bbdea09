"""Reading: any choice of slices gives the rows of a full read, and broken input fails its rows."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs.reading import Slices, plan_job, read, rows
from support.runs.selection import examples

from pipeline.commit.layout import Layout
from pipeline.commit.plan_store import adopt_plan, named
from pipeline.core.arrays import binary_array
from pipeline.core.errors import InfraError, JobError
from pipeline.core.schema import IMAGE_FIELDS, source_schema
from pipeline.planning.plan import Plan
from pipeline.planning.sampling import sample_rows, sample_units
from pipeline.sources.reader import read_slices
from pipeline.sources.rows import Reader
from pipeline.sources.units import Unit, only_rows, with_ctimes
from pipeline.storage.store import Store


def write_shards(folder: Path) -> None:
    """Four shards with different row groups, 151 rows; the images name their row."""
    folder.mkdir(exist_ok=True)
    for index, (num_rows, group) in enumerate([(40, 7), (3, 3), (101, 101), (7, 1)]):
        table = pa.table(
            {
                "other": ["unused" * 20] * num_rows,
                "image": [f"{index}:{row}".encode() * 3 for row in range(num_rows)],
                "id": [f"id-{index}-{row}" for row in range(num_rows)],
                "n": pa.array(range(num_rows), pa.int32()),
                "city": pa.array([f"c{row % 3}" for row in range(num_rows)]).dictionary_encode(),
            }
        )
        pq.write_table(table, folder / f"s{index}.parquet", row_group_size=group)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder)
    return folder


# ---------------------------------------------------------------------------- whole input


def test_a_full_read_gives_every_row_in_order(shards: Path):
    reader, plan = plan_job(shards, 10, id_column="id", pass_through=["n", "city"])
    slices, counted = read(reader, plan)
    expected = pa.concat_tables(
        [
            pq.read_table(path, columns=["id", "n", "city", "image"])
            for path in sorted(shards.iterdir())
        ]
    ).to_pylist()
    read_rows = rows(slices)
    assert [row["row_id"] for row in read_rows] == [row["id"] for row in expected]
    for name in ("n", "city", "image"):
        assert [row[name] for row in read_rows] == [row[name] for row in expected]
    assert all(row["error"] is None for row in read_rows)
    for table in slices.values():
        assert table.schema == source_schema(list(plan.pass_through), IMAGE_FIELDS)
    num_bytes = sum(len(row["image"]) for row in expected)
    totals = {
        name: sum(counters["read"][name] for counters in counted)
        for name in ("rows_in", "rows_out", "rows_quarantined", "bytes_in", "bytes_out")
    }
    assert totals == {
        "rows_in": 151,
        "rows_out": 151,
        "rows_quarantined": 0,
        "bytes_in": num_bytes,
        "bytes_out": num_bytes,
    }


@functools.cache
def full_read(shards: Path, slice_rows: int) -> tuple[Reader, Plan, Slices]:
    reader, plan = plan_job(shards, slice_rows, id_column="id", pass_through=["n", "city"])
    return reader, plan, read(reader, plan)[0]


@examples(60)
@given(data=st.data(), slice_rows=st.sampled_from([3, 10, 41, 160]))
def test_any_choice_of_slices_equals_the_full_read(
    shards: Path, data: st.DataObject, slice_rows: int
):
    reader, plan, every = full_read(shards, slice_rows)
    wanted = data.draw(st.sets(st.sampled_from(sorted(every))))
    some, _ = read(reader, plan, wanted)
    assert set(some) == wanted
    for key in wanted:
        assert some[key].equals(every[key])


@examples(40)
@given(data=st.data())
def test_any_cut_of_the_shards_gives_its_own_rows(shards: Path, data: st.DataObject):
    reader, plan = plan_job(shards, 1000)
    whole = [extent for unit in plan.units for extent in unit.extents]
    every = {
        (int(row["row_id"][1]), int(row["row_id"].partition("#")[2])): row["image"]
        for row in rows(read(reader, plan)[0])
    }
    extents, wanted = [], []
    for _ in range(data.draw(st.integers(1, 4))):
        extent = data.draw(st.sampled_from(whole))
        start = data.draw(st.integers(0, extent.num_rows - 1))
        count = data.draw(st.integers(1, extent.num_rows - start))
        first = extent.first_row + start
        extents.append(replace(extent, first_row=first, num_rows=count))
        wanted += [every[int(extent.path[1]), first + row] for row in range(count)]
    step = data.draw(st.integers(1, 50))
    unit = Unit(0, tuple(extents), (*range(0, len(wanted), step), len(wanted)))
    starts = data.draw(st.sets(st.sampled_from([key.start for key in unit.slices()])))
    for key, _, table in read_slices(reader, unit, starts):
        assert table.column("image").to_pylist() == wanted[key.start : key.end]


def test_object_storage_reads_like_a_local_folder(shards: Path, any_store: Store):
    for path in shards.iterdir():
        any_store.put(path.name, path.read_bytes())
    options = dict(any_store.storage_options)
    reader, plan = plan_job(any_store.url(), 10, id_column="id", storage_options=options)
    local = rows(read(*plan_job(shards, 10, id_column="id"))[0])
    read_rows = rows(read(reader, plan)[0])
    assert [{**row, "uri": ""} for row in read_rows] == [{**row, "uri": ""} for row in local]
    assert read_rows[0]["uri"] == any_store.url("s0.parquet")


# ---------------------------------------------------------------------------- rows that fail


@pytest.mark.parametrize("ids", [pa.array([7, None, 9], pa.int64()), pa.array(["7", "", "9"])])
def test_ids_become_text_and_one_that_names_no_row_fails_it(ids: pa.Array, tmp_path: Path):
    pq.write_table(pa.table({"image": [b"x"] * 3, "id": ids}), tmp_path / "s.parquet")
    reader, plan = plan_job(tmp_path, 10, id_column="id")
    slices, (counters,) = read(reader, plan)
    assert [row["row_id"] for row in rows(slices)] == ["7", "s.parquet#1", "9"]
    assert [row["message"] for row in rows(slices)] == [None, "id is null or empty", None]
    assert (counters["read"]["rows_out"], counters["read"]["rows_quarantined"]) == (2, 1)


def test_shards_that_do_not_fit_become_failed_rows(tmp_path: Path):
    pq.write_table(pa.table({"image": [b"x"] * 3, "n": [1, 2, 3]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": [b"x"] * 3, "n": ["1"] * 3}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"n": [1, 2, 3]}), tmp_path / "c.parquet")
    (tmp_path / "d.parquet").write_bytes(b"broken")
    pq.write_table(pa.table({"picture": [b"x"] * 3}), tmp_path / "e.parquet")
    reader, plan = plan_job(tmp_path, 2, pass_through=["n"])
    read_rows = rows(read(reader, plan)[0])
    assert [row["error"] for row in read_rows] == (
        [None] * 3 + ["bad_schema"] * 6 + ["unreadable_shard"] + ["bad_schema"] * 3
    )
    ids = [row["row_id"] for row in read_rows]
    assert ids[3:10] == [f"{s}.parquet#{r}" for s in "bc" for r in range(3)] + ["d.parquet"]
    assert len(set(ids)) == len(ids)
    assert all(row["message"] and row["image"] is None for row in read_rows if row["error"])


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self._canary), "w")


EXTENSIONS = (
    *("ray.data.arrow_pickled_object", "ray.data.arrow_tensor", "ray.data.arrow_tensor_v2"),
    *("ray.data.arrow_variable_shaped_tensor", "arrow.py_extension_type"),
)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_no_column_type_runs_what_a_shard_carries(extension: str, tmp_path: Path):
    import ray.data  # noqa: F401  # registers its types, as in a worker

    canary = tmp_path / "canary"
    payload = pickle.dumps(Payload(canary))
    metadata = {"ARROW:extension:name": extension, "ARROW:extension:metadata": payload}
    (tmp_path / "in").mkdir()
    for name, column in (("a", "image"), ("b", "note")):
        fields = [
            pa.field(name, pa.binary(), metadata=metadata if name == column else None)
            for name in ("image", "note")
        ]
        table = pa.table([[payload] * 3] * 2, schema=pa.schema(fields))
        pq.write_table(table, tmp_path / "in" / f"{name}.parquet")
    read_rows = []
    with contextlib.suppress(JobError):  # the whole job may be refused as well
        reader, plan = plan_job(tmp_path / "in", 2, pass_through=["note"])
        read_rows = rows(read(reader, plan)[0])
    assert not canary.exists()
    for row in read_rows:
        assert row["error"] or row["image"] == payload
    pickle.loads(payload).close()
    assert canary.exists(), "the payload works if it is unpickled"


def damage(path: Path, start_pct: int, stop_pct: int, fill: bytes) -> None:
    """Overwrite a part of a file, keeping its size and time."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    start, stop = (len(data) * pct // 100 for pct in (start_pct, stop_pct))
    data[start:stop] = (fill * len(data))[: stop - start]
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def write_random_shard(path: Path, compression: str) -> list[bytes]:
    """One shard of 8 row groups with 25 images of random bytes each."""
    images = [os.urandom(2000) for _ in range(200)]
    pq.write_table(
        pa.table({"image": images}),
        path,
        row_group_size=25,
        compression=compression,
        use_dictionary=False,
        data_page_size=8192,
    )
    return images


@pytest.mark.parametrize("compression", ["zstd", "snappy", "gzip"])
@pytest.mark.parametrize("fill", [b"\x00", b"\xff", b"\x15\x00\x8f"])
def test_damage_in_the_middle_of_a_shard_costs_rows_and_no_run(
    compression: str, fill: bytes, tmp_path: Path
):
    images = write_random_shard(tmp_path / "s.parquet", compression)
    damage(tmp_path / "s.parquet", 52, 60, fill)
    reader, plan = plan_job(tmp_path, 10)
    slices, counted = read(reader, plan)
    read_rows = rows(slices)
    assert len(read_rows) == 200
    assert [row["row_id"] for row in read_rows] == [f"s.parquet#{i}" for i in range(200)]
    failed = [index for index, row in enumerate(read_rows) if row["error"]]
    assert failed
    assert {read_rows[index]["error"] for index in failed} == {"unreadable_shard"}
    # Row groups before and after the damage are complete.
    assert set(failed) <= set(range(75, 150))
    for index in set(range(200)) - set(range(75, 150)):
        assert read_rows[index]["image"] == images[index]
    assert sum(counters["read"]["rows_quarantined"] for counters in counted) == len(failed)


@pytest.mark.parametrize("checksums", [True, False], ids=["with checksums", "without"])
def test_of_a_damaged_shard_the_same_rows_fail_however_it_is_cut(checksums: bool, tmp_path: Path):
    path, images = tmp_path / "s.parquet", [b"image %d" % row for row in range(30)]
    how: dict[str, Any] = {"row_group_size": 7, "use_dictionary": False, "compression": "none"}
    pq.write_table(pa.table({"image": images}), path, write_page_checksum=checksums, **how)
    whole = path.read_bytes()
    for at in range(4, len(whole) - 8 - int.from_bytes(whole[-8:-4], "little"), 61):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        small, large = (rows(read(*plan_job(tmp_path, slice_rows))[0]) for slice_rows in (3, 30))
        assert small == large
        assert [row["row_id"] for row in large] == [f"s.parquet#{i}" for i in range(30)]
        is_right = [row["image"] == image for row, image in zip(large, images, strict=True)]
        assert {row["error"] for row in large} <= {None, "unreadable_shard"}
        assert sum(is_right) >= 23, "other row groups are read"
        if checksums:
            assert is_right == [row["error"] is None for row in large]


def test_a_page_that_says_too_few_rows_costs_the_others_and_no_run(tmp_path: Path):
    images = [b"x%d" % row for row in range(30)]
    path = tmp_path / "s.parquet"
    pq.write_table(pa.table({"image": images}), path, use_dictionary=False, compression="none")
    data = bytearray(path.read_bytes())
    data[14] ^= 1 << 3  # the number of values in the header of the only page: 26
    path.write_bytes(data)
    for slice_rows in (4, 30):
        read_rows = rows(read(*plan_job(tmp_path, slice_rows))[0])
        assert [row["error"] for row in read_rows] == [None] * 26 + ["unreadable_shard"] * 4
        assert [row["image"] for row in read_rows[:26]] == images[:26]


def test_a_shard_cut_after_planning_costs_its_rows(tmp_path: Path):
    write_random_shard(tmp_path / "a.parquet", "snappy")
    images = write_random_shard(tmp_path / "b.parquet", "snappy")
    reader, plan = plan_job(tmp_path, 10)
    damage(tmp_path / "a.parquet", 45, 100, b"\x00")
    # As a disk damages it, without a new ctime.
    plan = replace(plan, units=with_ctimes(plan.units, {"": 1}))
    read_rows = rows(read(reader, plan)[0])
    assert [row["error"] for row in read_rows] == ["unreadable_shard"] * 200 + [None] * 200
    assert [row["image"] for row in read_rows[200:]] == images


def test_a_vanished_shard_costs_its_rows(tmp_path: Path):
    for name in "ab":
        pq.write_table(pa.table({"image": [b"x"] * 5}), tmp_path / f"{name}.parquet")
    reader, plan = plan_job(tmp_path, 4)
    (tmp_path / "a.parquet").unlink()
    read_rows = rows(read(reader, plan)[0])
    assert [row["error"] for row in read_rows] == ["missing"] * 5 + [None] * 5
    assert len({row["row_id"] for row in read_rows}) == 10


def test_a_chmod_leaves_the_fingerprint_and_the_next_run_plans_anew(tmp_path: Path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.parquet"
    pq.write_table(pa.table({"image": [b"x"] * 12}), path)
    reader, plan = plan_job(tmp_path / "in", 4)
    store, layout = Store(str(tmp_path / "out")), Layout("date=2026-11-24")
    adopt_plan(store, layout, plan)
    path.chmod(0o600)
    again = plan_job(tmp_path / "in", 4)[1]
    assert again.fingerprint == plan.fingerprint
    assert named(again).work != named(plan).work
    adopted = adopt_plan(store, layout, again)
    assert len(rows(read(reader, adopted)[0])) == 12
    with pytest.raises(InfraError, match="changed since it was planned"):
        read(reader, plan)


# ---------------------------------------------------------------------------- image files


def images_job(store: Store, slice_rows: int, **fields: Any) -> tuple[Reader, Plan]:
    options = dict(store.storage_options)
    return plan_job(store.url(), slice_rows, format="images", storage_options=options, **fields)


def test_a_file_above_the_limit_is_refused_unread(tmp_path: Path):
    store = Store(str(tmp_path))
    for name, size in (("a.jpg", 10), ("b.jpg", 11), ("c.jpg", 3)):
        store.put(name, b"x" * size)
    reader, plan = images_job(store, 10, max_image_bytes=10)
    # A folder in its place: reading it would fail.
    (tmp_path / "b.jpg").unlink()
    (tmp_path / "b.jpg").mkdir()
    read_rows = rows(read(reader, plan)[0])
    assert [row["error"] for row in read_rows] == [None, "too_large", None]
    assert read_rows[1]["num_bytes"] == 11
    assert read_rows[1]["message"] == "11 bytes, the limit is 10"
    assert read_rows[1]["image"] is None


def test_folders_name_the_columns_of_files(tmp_path: Path):
    store = Store(str(tmp_path))
    for name in ("label=a%20b/year=1/a.jpg", "label=cat/year=x/b.jpg", "year=2/c.jpg"):
        store.put(name, b"x")
    columns = {"truth": "label", "year": "year"}
    reader, plan = images_job(store, 2, pass_through=columns, casts={"year": "int32"})
    read_rows = rows(read(reader, plan)[0])
    assert [(row["error"], row["truth"], row["year"]) for row in read_rows] == [
        (None, "a b", 1),
        ("bad_schema", "cat", None),
        ("bad_schema", None, 2),
    ]
    assert "no column 'label'" in read_rows[2]["message"]
    inside = Store(store.url("label=cat"))
    with pytest.raises(JobError, match=r"no column 'none': .* none=VALUE/$"):
        images_job(inside, 2, pass_through=["year", "none"])
    with pytest.raises(JobError, match=r"no column 'label': .* above source.uri"):
        images_job(inside, 2, pass_through={"truth": "label"})


def test_a_vanished_file_costs_its_row_and_a_changed_one_stops_the_run(any_store: Store):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        any_store.put(name, name.encode())
    reader, plan = images_job(any_store, 10)
    any_store.delete(["b.jpg"])
    read_rows = rows(read(reader, plan)[0])
    assert [row["error"] for row in read_rows] == [None, "missing", None]
    assert [row["image"] for row in read_rows] == [b"a.jpg", None, b"c.jpg"]
    assert read_rows[2]["uri"] == any_store.url("c.jpg")
    for content in (b"longer than it was", b"C.jpg"):  # the second is as long as the first was
        any_store.put("c.jpg", content)
        with pytest.raises(InfraError, match=r"c\.jpg: it changed since it was listed"):
            read(reader, plan)


@given(values=st.lists(st.none() | st.binary(max_size=9), max_size=30))
def test_images_that_were_read_become_the_array_that_arrow_makes_of_them(
    values: list[bytes | None],
):
    made = binary_array(values)
    made.validate(full=True)
    assert made.equals(pa.array(values, pa.large_binary()))


@given(data=st.data(), slice_rows=st.integers(1, 60))
@examples(40)
def test_chosen_rows_of_a_unit_are_those_of_the_full_read(
    shards: Path, data: st.DataObject, slice_rows: int
):
    reader, plan = plan_job(shards, slice_rows)
    unit = data.draw(st.sampled_from(plan.units))
    chosen = sorted(data.draw(st.sets(st.integers(0, unit.bounds[-1] - 1), min_size=1)))
    every = pa.concat_tables([part for _, _, part in read_slices(reader, unit, _starts(unit))])
    [(key, _, table)] = read_slices(reader, only_rows(unit, chosen), frozenset([0]))
    assert (key.unit, key.num_rows) == (unit.index, len(chosen))
    assert table.to_pylist() == every.take(chosen).to_pylist()


def _starts(unit: Unit) -> frozenset[int]:
    return frozenset(key.start for key in unit.slices())


@given(num_rows=st.integers(1, 200), slice_rows=st.integers(1, 60))
@examples(40)
def test_a_sample_is_of_rows_from_all_over_and_the_same_each_time(
    shards: Path, num_rows: int, slice_rows: int
):
    reader, plan = plan_job(shards, slice_rows)
    units, seed = sample_units(plan, num_rows)
    assert len({unit.index for unit in units}) == min(16, len(plan.units))
    sample = sample_rows(reader, units, num_rows, seed)
    assert sample.equals(sample_rows(reader, *sample_units(plan, num_rows)[:1], num_rows, seed))
    ids = sample.column("row_id").to_pylist()
    assert len(set(ids)) == len(ids) <= num_rows
    from_units = [len(set(ids) & set(_ids(reader, unit))) for unit in units]
    assert max(from_units) <= -(-num_rows // len(units))
    assert ids


def _ids(reader: Reader, unit: Unit) -> list[str]:
    return [
        row_id
        for _, _, part in read_slices(reader, unit, _starts(unit))
        for row_id in part.column("row_id").to_pylist()
    ]
