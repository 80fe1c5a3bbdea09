"""No row is lost: a bad row or shard costs itself alone, and a file that changes ends the run."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.inputs.shard_columns import read_all, source_of, text
from support.runs.reading import plan_job

from pipeline.core import backoff
from pipeline.core.errors import InfraError, JobError
from pipeline.core.schema import IMAGE_FIELDS
from pipeline.job.source import Source
from pipeline.planning.slicing import SliceSizes, make_units
from pipeline.sources.formats.parquet_footers import read_footers
from pipeline.sources.formats.webdataset import TarSpec, iter_rows
from pipeline.sources.listing.inputs import Inputs, list_inputs
from pipeline.sources.reader import read_slices
from pipeline.sources.rows import Reader
from pipeline.sources.units import Unit
from pipeline.sources.whole_file import _WholeFile
from pipeline.storage.errors import classify
from pipeline.storage.store import Store


def write_shard(path: Path, mark: bytes, rows: int, group: int) -> None:
    """Images of 100 KB that say which version they are of."""
    images = [mark * 100_000] * rows
    pq.write_table(
        pa.table({"image": images, "n": pa.array(range(rows))}),
        path,
        row_group_size=group,
        compression="none",
        use_dictionary=False,
        write_batch_size=8,
        data_page_size=1,
    )


def slices_of(inputs: Inputs, source: Source, slice_rows: int) -> Iterator[pa.Table]:
    reader = Reader(Store(inputs.root), source, inputs.pass_through, inputs.fields)
    for unit in make_units(inputs.extents, SliceSizes(slice_rows)):
        for _, _, rows in read_slices(reader, unit, {key.start for key in unit.slices()}):
            yield rows


# ---------------------------------------------------------------------------- overwritten


@pytest.mark.parametrize("after", [1, 5, 8])
@pytest.mark.parametrize("touch", [True, False], ids=["rewritten", "cut"])
def test_a_shard_written_to_while_it_is_read_gives_no_row_of_another_version(
    after: int, touch: bool, tmp_path: Path
):
    path = tmp_path / "a.parquet"
    write_shard(path, b"r", 60, 30)
    source = source_of(tmp_path, pass_through=("n",))
    inputs = list_inputs(source, max_extent_rows=100)
    slices = slices_of(inputs, source, 6)
    seen = [next(slices) for _ in range(after)]
    data = path.read_bytes().replace(b"r" * 100_000, b"b" * 100_000)
    with path.open("r+b") as file:
        file.write(data if touch else b"")
        file.truncate(None if touch else 5000)
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    with pytest.raises(InfraError, match=r"a\.parquet: changed since it was planned"):
        seen += slices
    images = {image[:1] for rows in seen for image in rows["image"].to_pylist()}
    assert images == {b"r"}


def test_an_object_is_read_as_one_version(any_store: Store):
    def put(mark: bytes) -> None:
        buffer = pa.BufferOutputStream()
        images = [mark * 500_000] * 60
        pq.write_table(pa.table({"image": images}), buffer, row_group_size=20, compression="none",
                       use_dictionary=False)  # fmt: skip
        any_store.put("a.parquet", buffer.getvalue().to_pybytes())

    put(b"r")
    options = dict(any_store.storage_options)
    source = Source(uri=any_store.url(), format="parquet", storage_options=options)
    inputs = list_inputs(source, max_extent_rows=100)
    reader = Reader(Store(inputs.root, options), source, inputs.pass_through, IMAGE_FIELDS)
    [unit] = make_units(inputs.extents, SliceSizes(60))
    unit = Unit(0, unit.extents, tuple(range(0, 61, 5)))
    slices = read_slices(reader, unit, {key.start for key in unit.slices()})
    seen = [next(slices)[2]]
    put(b"b")
    with pytest.raises(InfraError, match="changed since it was"):
        seen += [rows for _, _, rows in slices]
    assert {image[:1] for rows in seen for image in rows["image"].to_pylist()} == {b"r"}


def test_a_shard_that_is_deleted_while_it_is_read_was_whole(tmp_path: Path):
    path = tmp_path / "a.parquet"
    write_shard(path, b"r", 60, 60)
    source = source_of(tmp_path)
    inputs = list_inputs(source, max_extent_rows=100)
    reader = Reader(Store(inputs.root), source, inputs.pass_through, IMAGE_FIELDS)
    unit = Unit(0, inputs.extents, (0, 10, 60))
    slices = read_slices(reader, unit, {0, 10})
    first = next(slices)[2]
    path.unlink()
    [(_, _, rest)] = slices
    assert first["error"].null_count == 10
    assert rest["error"].null_count == 50


# ---------------------------------------------------------------------------- names and ids


def test_an_id_that_is_no_utf8_costs_its_row(tmp_path: Path):
    ids = text(b"a", b"caf\xe9", None, b"d")
    for column in (
        ids,
        pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 2], pa.int32()), ids.take([0, 1, 3])),
    ):
        pq.write_table(pa.table({"image": [b"x"] * 4, "id": column}), tmp_path / "a.parquet")
        source = source_of(tmp_path, id_column="id")
        [rows] = read_all(list_inputs(source, max_extent_rows=9), source, 9)
        assert rows["row_id"].to_pylist() == ["a", "a.parquet#1", "a.parquet#2", "d"]
        assert rows["error"].to_pylist() == [None, "unidentified", "null_input", None]
        assert rows["message"].to_pylist() == [
            None,
            r"id is not UTF-8: caf\xe9",
            "id is null or empty",
            None,
        ]


# ---------------------------------------------------------------------------- footers


def test_a_column_name_that_is_no_utf8_costs_its_shard(tmp_path: Path):
    for name in "ab":
        table = pa.table({"image": [b"x"] * 3, "weight": [1.0] * 3})
        pq.write_table(table, tmp_path / f"{name}.parquet", store_schema=False)
    path = tmp_path / "b.parquet"
    path.write_bytes(path.read_bytes().replace(b"weight", b"we\xffght"))
    source = source_of(tmp_path)
    inputs = list_inputs(source, max_extent_rows=9)
    rows = pa.concat_tables(read_all(inputs, source, 9))
    assert rows["row_id"].to_pylist() == [*(f"a.parquet#{n}" for n in range(3)), "b.parquet"]
    assert rows["error"].to_pylist() == [None] * 3 + ["unreadable_shard"]
    assert rows["message"][3].as_py().startswith("damaged: UnicodeDecodeError")


@pytest.mark.parametrize("times", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_damaged_footers_cost_their_shards(times: int, tmp_path: Path):
    columns = {
        "image": [b"x" * 9] * 6,
        "id": list("abcdef"),
        "n": pa.array(range(6)),
        "tags": [["p"], None, []] * 2,
        "s": [{"a": 1, "b": "t"}] * 6,
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=2)
    data = (tmp_path / "a.parquet").read_bytes()
    footer_bytes = int.from_bytes(data[-8:-4], "little")
    source = source_of(tmp_path, id_column="id", pass_through=("n", "tags", "s"))
    rng = random.Random(8)
    outcomes = set()
    for _ in range(times):
        broken = bytearray(data)
        for _ in range(rng.choice([1, 1, 1, 2, 8])):
            broken[len(data) - 8 - rng.randrange(footer_bytes)] = rng.randrange(256)
        (tmp_path / "b.parquet").write_bytes(broken)
        inputs = list_inputs(source, max_extent_rows=4)
        rows = pa.concat_tables(read_all(inputs, source, 4))
        assert inputs.num_rows == rows.num_rows
        assert rows.num_rows in (7, 12)
        assert rows["error"].slice(0, 6).null_count == 6
        outcomes |= set(rows["error"].slice(6).to_pylist())
        rows.validate(full=True)
    assert outcomes <= {None, "unreadable_shard", "bad_schema", "null_input", "unidentified"}
    assert {None, "unreadable_shard", "bad_schema"} <= outcomes


# ---------------------------------------------------------------------------- bad blocks


BAD = "/proc/self/mem"
"""A file whose first bytes no read can get: EIO."""


@pytest.fixture
def bad_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with links to a file that cannot be read."""
    with pytest.raises(OSError, match="Input/output error") as caught, open(BAD, "rb") as file:
        file.read(1)
    assert caught.value.errno == errno.EIO
    monkeypatch.setattr(backoff, "FIRST_WAIT_S", 0.0)
    for suffix in ("png", "tar"):
        (tmp_path / f"bad.{suffix}").symlink_to(BAD)
    return tmp_path


def test_a_bad_block_costs_its_image(bad_block: Path):
    (bad_block / "good.png").write_bytes(b"x")
    source = Source(uri=str(bad_block), format="images", files=("bad.png", "good.png"))
    before = backoff.retries_taken()
    [rows] = read_all(list_inputs(source, max_extent_rows=9), source, 9)
    assert rows["error"].to_pylist() == ["unreadable_shard", None]
    assert "the disk cannot read it" in rows["message"][0].as_py()
    assert backoff.retries_taken() - before == backoff.TRIES - 1


class WithBadBlock(io.FileIO):
    """A file of which the bytes from a place on cannot be read."""

    start = 0

    def readinto(self, buffer: Any, /) -> int:
        if self.tell() + len(buffer) > self.start and self.tell() < self.start + 4096:
            with open(BAD, "rb", buffering=0) as bad:
                return bad.readinto(buffer) or 0
        return super().readinto(buffer) or 0

    def read(self, size: int | None = -1, /) -> bytes:
        buffer = bytearray(os.fstat(self.fileno()).st_size if size in (None, -1) else size or 0)
        return bytes(buffer[: self.readinto(buffer)])


class DamagedDisk(Store):
    """Files named `bad` have a bad block, at `start`."""

    start = 0

    def open(self, path: str) -> BinaryIO:
        if "bad" not in path:
            return super().open(path)
        file = WithBadBlock(f"{self.uri}/{path}")
        file.start = type(self).start
        return cast(BinaryIO, file)


def test_a_bad_block_costs_its_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backoff, "FIRST_WAIT_S", 0.0)
    for name in ("bad", "good"):
        write_shard(tmp_path / f"{name}.parquet", b"r", 30, 10)
    source = source_of(tmp_path)
    inputs = list_inputs(source, max_extent_rows=10)
    monkeypatch.setattr(DamagedDisk, "start", 1_500_000)
    reader = Reader(DamagedDisk(inputs.root), source, inputs.pass_through, IMAGE_FIELDS)
    errors = [
        rows["error"].to_pylist()
        for unit in make_units(inputs.extents, SliceSizes(10))
        for _, _, rows in read_slices(reader, unit, {0})
    ]
    assert errors[0] == errors[2] == errors[3] == errors[4] == errors[5] == [None] * 10
    assert set(errors[1]) == {"unreadable_shard"}
    size_bytes = (tmp_path / "bad.parquet").stat().st_size
    monkeypatch.setattr(DamagedDisk, "start", size_bytes - 100)
    footers = read_footers(DamagedDisk(inputs.root), inputs.shards, source)
    assert [footer.reason for footer in footers] == ["unreadable_shard", None]
    assert "the disk cannot read it" in footers[0].message


def test_a_bad_block_costs_the_rest_of_its_tar(bad_block: Path):
    path = bad_block / "bad.tar"
    source = Source(uri=str(bad_block), format="webdataset", files=("bad.tar",))
    inputs = list_inputs(source, max_extent_rows=9)
    assert path.stat().st_size == 0
    [extent] = inputs.extents
    extent = dataclasses.replace(extent, size_bytes=10_240)
    store = Store(inputs.root)
    with open(BAD, "rb") as file, io.BufferedReader(_WholeFile(file, store, extent)) as tar:
        [row] = iter_rows(tar, TarSpec(("png",), (), 9), size_bytes=10_240)
    assert row.failure is not None
    assert row.failure.reason == "unreadable_shard"
    assert "at byte 0: the disk cannot read it" in row.failure.message


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ESTALE, errno.ENOSPC, errno.ENODEV])
def test_a_lost_mount_is_infrastructure_trouble_and_fails_no_row(number: int):
    error = classify(OSError(number, os.strerror(number)), "cannot read x")
    assert isinstance(error, InfraError)
    assert not isinstance(error, backoff.BadBlockError)
    assert not backoff.is_damage(OSError(number, os.strerror(number)))


def test_an_input_output_error_of_a_store_is_no_bad_block():
    # s3fs calls everything that it does not know an input/output error.
    error = classify(OSError(errno.EIO, "Unknown"), "cannot read s3://b/x")
    assert not isinstance(error, backoff.BadBlockError)


# ---------------------------------------------------------------------------- names of columns


@pytest.mark.parametrize("name", ["date", "Date"])
def test_no_column_is_named_like_the_partition_key(name: str, tmp_path: Path):
    pq.write_table(pa.table({"image": [b"x"], name: ["2019-01-01"]}), tmp_path / "a.parquet")
    sink = {"uri": "out", "partition": "date=2026-11-24"}
    with pytest.raises(JobError, match=f"column '{name}' has the name of sink.partition = date="):
        plan_job(tmp_path, 3, sink=sink, pass_through=[name])
    _, plan = plan_job(tmp_path, 3, sink={**sink, "partition": "day=1"}, pass_through=[name])
    assert plan.pass_through.names == [name]
