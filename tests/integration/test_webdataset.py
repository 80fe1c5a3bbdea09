"""No row is lost in a tar: slices are found while reading, and resumed rows are the same."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.inputs.tars import END_BYTES, Entry, pack
from support.runs.selection import examples

from pipeline.commit.plan_store import named, plan_from_json, plan_to_json
from pipeline.core.errors import InfraError, JobError
from pipeline.core.schema import IMAGE_FIELDS, source_schema
from pipeline.core.slices import SliceKey
from pipeline.job.job import Job
from pipeline.job.reading.loader import parse_job
from pipeline.models.resolving.resolve import resolve_model
from pipeline.operations.plan import plan
from pipeline.planning.plan import Plan, make_plan
from pipeline.planning.tiling import done_slices, first_slices, missing_units, require_complete
from pipeline.sources.listing.inputs import list_inputs
from pipeline.sources.reader import read_slices
from pipeline.sources.rows import Reader
from pipeline.storage.store import Store, StoredFile

pytestmark = pytest.mark.no_ray

Tables = dict[SliceKey, pa.Table]


def make_job(folder: Path | str, slice_rows: int, *, run: Any = None, **fields: Any) -> Job:
    document = {
        "source": {"uri": str(folder), "format": "webdataset", **fields},
        "model": {"factory": "models:colours", "labels": models.LABELS},
        "transform": models.TRANSFORM,
        "sink": {"uri": f"{folder}-out"},
        "run": {"slice_rows": slice_rows, **(run or {})},
    }
    return parse_job(document, date=dt.date(2026, 11, 24), origin="test")


def plan_job(folder: Path | str, slice_rows: int, **fields: Any) -> tuple[Reader, Plan]:
    job = make_job(folder, slice_rows, **fields)
    inputs = list_inputs(job.source, max_extent_rows=slice_rows)
    model = resolve_model(job, ["models"])
    plan = make_plan(job, inputs, model, batch_size=1)
    store = Store(plan.source_root, job.source.storage_options)
    return Reader(store, job.source, plan.pass_through, IMAGE_FIELDS), plan


def with_slice_bytes(plan: Plan, slice_bytes: int) -> Plan:
    """The same plan with lighter slices."""
    units = []
    for unit in plan.units:
        assert unit.cut is not None
        units.append(replace(unit, cut=replace(unit.cut, slice_bytes=slice_bytes)))
    return replace(plan, units=tuple(units))


def key(start: int, end: int) -> SliceKey:
    return SliceKey(0, start, end, is_last=False)


def staged(keys: Iterable[SliceKey]) -> dict[SliceKey, StoredFile]:
    return {key: StoredFile(f"{key}", 1, "v", None) for key in keys}


def read(reader: Reader, plan: Plan, done: Iterable[SliceKey] = ()) -> Tables:
    """Read all slices but those that are done."""
    tables: Tables = {}
    for unit, starts in missing_units(plan, staged(done)).items():
        for key, counters, table in read_slices(reader, unit, frozenset(starts)):
            assert table.num_rows == key.num_rows == counters["read"]["rows_in"]
            assert table.schema == source_schema(list(plan.pass_through), IMAGE_FIELDS)
            assert key not in tables
            tables[key] = table
    return tables


def rows(tables: Mapping[SliceKey, pa.Table]) -> list[dict[str, Any]]:
    keys = sorted(tables, key=lambda key: (key.unit, key.start))
    return [row for key in keys for row in tables[key].to_pylist()]


def entries(count: int, *, size: int = 30) -> list[Entry]:
    """Rows whose image names them, some heavier than others, some of them bad."""
    made = []
    for row in range(count):
        made.append(Entry(f"k{row:03d}.jpg", f"{row}".encode() * (size * (row % 5) + 1)))
        made.append(Entry(f"k{row:03d}.cls", str(row).encode() if row % 7 else b"no number"))
    return made


def write_tars(folder: Path, counts: Sequence[int], cut: int = 0) -> None:
    """One tar for each count; `cut` bytes are missing at the end of the last one."""
    folder.mkdir(exist_ok=True)
    for index, count in enumerate(counts):
        data = pack(entries(count))
        is_last = index == len(counts) - 1
        (folder / f"t{index}.tar").write_bytes(data[: len(data) - (cut if is_last else 0)])


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tars")
    write_tars(folder, [40, 0, 7, 23], cut=END_BYTES + 600)
    (folder / "z.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd and so on")
    return folder


# ---------------------------------------------------------------------------- slices


def test_a_full_read_gives_every_row_with_its_place(tars: Path):
    reader, plan = plan_job(tars, 10, pass_through=["cls"])
    read_rows = rows(read(reader, plan))
    wanted = [(0, row) for row in range(40)] + [(2, row) for row in range(7)]
    wanted += [(3, row) for row in range(23)]
    ids = [f"t{tar}.tar/k{row:03d}" for tar, row in wanted]
    assert [row["row_id"] for row in read_rows] == [*ids, "t3.tar", "z.tar.zst"]
    for row, (tar, number) in zip(read_rows, wanted, strict=False):
        assert row["uri"] == f"{tars}/t{tar}.tar#k{number:03d}.jpg"
    good = [row for row in read_rows if row["error"] is None]
    assert [row["cls"] for row in good] == [number for _, number in wanted[:-1] if number % 7]
    assert all(row["image"].startswith(str(row["cls"]).encode()) for row in good)
    bad = {row["row_id"]: row["error"] for row in read_rows[-3:]}
    assert bad == {
        "t3.tar/k022": "truncated",
        "t3.tar": "unreadable_shard",
        "z.tar.zst": "unreadable_shard",
    }


@examples(70)
@given(data=st.data(), slice_rows=st.integers(1, 45), light=st.booleans())
def test_any_staged_slices_and_the_rest_are_the_full_read(
    tars: Path, data: st.DataObject, slice_rows: int, light: bool
):
    reader, plan = plan_job(tars, slice_rows, pass_through=["cls"])
    if light:
        plan = with_slice_bytes(plan, data.draw(st.integers(1, 900)))
    whole = read(reader, plan)
    done = data.draw(st.sets(st.sampled_from(list(whole))))
    rest = read(reader, plan, done)
    assert set(rest) == set(whole) - done
    assert all(table.equals(whole[key]) for key, table in rest.items())
    starts = {key.unit: key.start for key in sorted(rest, key=lambda key: -key.start)}
    assert first_slices(missing_units(plan, staged(done)), 99) == frozenset(starts.items())
    both = staged([*rest, *done])
    tiled = [key for key, _ in require_complete(plan, both)]
    assert sum(key.num_rows for key in tiled) == 72
    assert missing_units(plan, both) == {}
    assert done_slices(plan, both) == tiled


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8, 9])
def test_the_last_slice_is_marked_even_if_it_is_full(count: int, tmp_path: Path):
    write_tars(tmp_path / "in", [count])
    keys = list(read(*plan_job(tmp_path / "in", 4)))
    bounds = [(key.start, key.end, key.is_last) for key in keys]
    starts = range(0, max(count, 1), 4)
    assert bounds == [(at, min(at + 4, count), at + 4 >= count) for at in starts]


def test_slices_are_light_and_a_heavy_row_is_a_slice(tmp_path: Path):
    sizes = [10, 10, 500, 10, 90, 1, 10]
    data = pack([Entry(f"{i}.jpg", bytes(size)) for i, size in enumerate(sizes)])
    (tmp_path / "a.tar").write_bytes(data)
    reader, plan = plan_job(tmp_path, 3)
    keys = list(read(reader, with_slice_bytes(plan, 100)))
    assert [(key.start, key.end) for key in keys] == [(0, 2), (2, 3), (3, 5), (5, 7)]


@pytest.mark.parametrize("limit", [1, 9, 10, 40, 41, 47, 1000])
def test_a_limit_takes_the_first_rows_over_all_tars(limit: int, tars: Path):
    reader, plan = plan_job(tars, 10)
    whole = rows(read(reader, plan))
    reader, plan = plan_job(tars, 10, run={"limit_rows": limit})
    tables = read(reader, plan)
    assert rows(tables) == whole[:limit]
    assert [key.is_last for key in tables] == [False] * (len(tables) - 1) + [True]
    done = list(tables)[::2]
    assert set(read(reader, plan, done)) == set(tables) - set(done)


def test_tars_in_an_object_store_read_like_local_ones(tars: Path, any_store: Store):
    for path in tars.iterdir():
        any_store.put(path.name, path.read_bytes())
    options = dict(any_store.storage_options)
    reader, plan = plan_job(any_store.url(), 10, storage_options=options, pass_through=["cls"])
    tables = read(reader, plan)
    local = rows(read(*plan_job(tars, 10, pass_through=["cls"])))
    assert [{**row, "uri": ""} for row in rows(tables)] == [{**row, "uri": ""} for row in local]
    assert rows(tables)[0]["uri"] == any_store.url("t0.tar#k000.jpg")
    done = list(tables)[1::2]
    assert set(read(reader, plan, done)) == set(tables) - set(done)


def test_a_plan_survives_storing_and_knows_no_rows(tars: Path):
    _, plan = plan_job(tars, 10, pass_through=["cls", "json"], run={"limit_rows": 12})
    assert plan_from_json(plan_to_json(plan), named(plan).work) == plan
    assert (plan.num_rows, plan.num_shards, len(plan.units)) == (None, 5, 1)
    assert plan.pass_through == pa.schema([("cls", pa.int64()), ("json", pa.string())])
    with pytest.raises(ValueError, match="known when it has been read"):
        list(plan.slices())


def test_pass_through_and_the_image_are_part_of_the_fingerprint(tars: Path):
    plans = [
        plan_job(tars, 10)[1],
        plan_job(tars, 10, pass_through=["cls"])[1],
        plan_job(tars, 10, image_extensions=["png", "jpg"])[1],
    ]
    assert len({plan.fingerprint for plan in plans}) == 3


@pytest.mark.usefixtures("without_ray_here")
def test_the_description_of_a_plan_says_what_is_not_known(tars: Path):
    planned = plan(make_job(tars, 10), allow_import=["models"], tries=False)
    assert (planned["units"], planned["slices"], planned["rows_left"]) == (5, None, None)
    assert (planned["input"]["rows"], planned["input"]["rows_are"]) == (None, "unknown until read")
    assert planned["input"]["unreadable_shards"] is None


# ---------------------------------------------------------------------------- trouble


def test_a_tar_that_changes_is_never_mixed_with_what_was_planned(tmp_path: Path):
    write_tars(tmp_path, [9])
    reader, plan = plan_job(tmp_path, 4)
    path = tmp_path / "t0.tar"
    slices = read_slices(reader, plan.units[0], frozenset())
    next(slices)
    os.utime(path, ns=(0, 0))
    with pytest.raises(InfraError, match="changed since it was planned"):
        next(slices)
    with pytest.raises(InfraError, match="changed since it was planned"):
        read(reader, plan)
    path.unlink()
    with pytest.raises(InfraError, match="changed since it was planned"):
        read(reader, plan)


def test_a_file_that_ends_early_is_infrastructure_trouble(tmp_path: Path):
    (tmp_path / "t0.tar").write_bytes(pack(entries(60, size=4000)))
    reader, plan = plan_job(tmp_path, 4)
    slices = read_slices(reader, plan.units[0], frozenset())
    next(slices)
    os.truncate(tmp_path / "t0.tar", 300_000)
    with pytest.raises(InfraError, match=r"ended \d+ bytes early|changed since"):
        list(slices)


def test_fewer_rows_than_were_staged_before_is_a_change(tmp_path: Path):
    write_tars(tmp_path, [6])
    reader, plan = plan_job(tmp_path, 4)
    for done in ([key(0, 4), key(4, 8)], [key(0, 4), key(4, 6)]):
        with pytest.raises(InfraError, match="changed since it was planned"):
            read(reader, plan, done)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"pass_through": ["row_id"]}, "row_id is a column that the output makes"),
        ({"pass_through": [".cls"]}, "no extension of a member beside the input"),
        ({"pass_through": ["CLS"]}, "no extension of a member beside the input"),
        ({"pass_through": ["jpg"]}, "no extension of a member beside the input"),
        ({"id_column": "id"}, "id_column has no effect with format 'webdataset'"),
        ({"image_extensions": [".jpg"]}, "image_extensions"),
        ({"format": "images", "image_extensions": ["jpg"]}, "has no effect with format 'images'"),
    ],
)
def test_an_impossible_job_is_refused_before_anything_is_read(
    fields: dict[str, Any], words: str, tars: Path
):
    with pytest.raises(JobError, match=words):
        plan_job(tars, 10, **fields)


def test_only_tars_are_shards_and_none_lies_in_another(tmp_path: Path, any_store: Store):
    for name in (
        "a.tar",
        "b/c.TAR",
        "b/d.tgz",
        "b/e.tar.gz",
        "f.tar.xz",
        "g.txt",
        ".h.tar",
        "_i.tar",
    ):
        any_store.put(name, b"x")
    source = make_job(any_store.url(), 4, storage_options=dict(any_store.storage_options)).source
    inputs = list_inputs(source, max_extent_rows=4)
    names = ["_i.tar", "a.tar", "b/c.TAR", "b/d.tgz", "b/e.tar.gz", "f.tar.xz"]
    assert [shard.path for shard in inputs.shards] == names
    assert inputs.skipped.first == {"extension": ("g.txt",), "hidden": (".h.tar",)}
    if any_store.is_object_store:
        any_store.put("a.tar/i.tar", b"x")
        with pytest.raises(JobError, match=r"a\.tar/i\.tar lies in a folder that is a tar"):
            list_inputs(source, max_extent_rows=4)
