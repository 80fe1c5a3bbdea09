"""Every source format follows the protocol: the built-in ones, and one of another distribution."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy_package
import yaml
from pydantic import ValidationError
from support.inputs.delta_tables import DeltaTable
from support.inputs.encoded import base_image, png
from support.inputs.iceberg_tables import (
    TABLE,
    catalog_at,
    delete_rows,
    without_catalog,
)
from support.inputs.tars import Entry, pack
from support.servers.faultproxy import DENIED, FaultProxy, Rule
from support.servers.object_stores import S3Server
from toy_source import POINTS, TOY_FILES

from pipeline.core import registry
from pipeline.core.errors import InfraError, JobError
from pipeline.core.failures import Reason
from pipeline.core.schema import AUDIO, ERROR, ROW_ID, URI
from pipeline.job.source import Source
from pipeline.planning.slicing import SliceSizes, make_units
from pipeline.sources.listing.inputs import Inputs, list_inputs
from pipeline.sources.reader import read_slices
from pipeline.sources.rows import Reader
from pipeline.sources.source_format import SourceFormat, format_of, planned_ids
from pipeline.sources.units import UncountedPlan, Unit, with_ctimes
from pipeline.storage.store import Store

NUM_ROWS = 10
IMAGE = png(base_image(1))
CLIP = b"RIFF\x04\0\0\0WAVE"


def write_images(folder: Path) -> None:
    for index in range(NUM_ROWS):
        (folder / f"{index}.png").write_bytes(IMAGE)


def write_clips(folder: Path) -> None:
    for index in range(NUM_ROWS):
        (folder / f"{index}.wav").write_bytes(CLIP)


def shards(suffix: str, shard_of: Callable[[int], bytes]) -> Callable[[Path], None]:
    """Return a function that writes two shards; `shard_of` makes one of so many rows."""

    def write(folder: Path) -> None:
        for name, num_rows in (("a", 4), ("b", 6)):
            (folder / f"{name}{suffix}").write_bytes(shard_of(num_rows))

    return write


def parquet_shard(num_rows: int) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"image": pa.array([IMAGE] * num_rows, pa.binary())})
    pq.write_table(table, sink, row_group_size=3)
    return sink.getvalue().to_pybytes()


def write_delta(folder: Path) -> None:
    table = DeltaTable(folder)
    rows = {n: pa.table({"image": pa.array([IMAGE] * n, pa.binary())}) for n in (4, 8)}
    files = {"a.parquet": rows[4], "b.parquet": rows[8]}
    table.commit({"image": pa.binary()}, files)
    table.commit({"image": pa.binary()}, deleted={"b.parquet": [2, 7]})


def write_iceberg(folder: Path) -> None:
    catalog = catalog_at(folder / "metadata")
    schema = pa.schema([("image", pa.binary())])
    table = catalog.create_table(TABLE, schema=schema, location=str(folder))
    for name, num_rows in (("a", 4), ("b", 8)):
        (folder / f"{name}.parquet").write_bytes(parquet_shard(num_rows))
        table.add_files([str(folder / f"{name}.parquet")])
    delete_rows(table, {str(folder / "b.parquet"): [2, 7]})
    without_catalog(table)


CODED = base64.b64encode(IMAGE)
WRITERS: dict[str, Callable[[Path], None]] = {
    "images": write_images,
    "audio": write_clips,
    "parquet": shards(".parquet", parquet_shard),
    "jsonl": shards(".jsonl", lambda rows: b'{"image": "%s"}\n' % CODED * rows),
    "csv": shards(".csv", lambda rows: b"image,n\n" + b"%s,1\n" % CODED * rows),
    "webdataset": shards(".tar", lambda rows: pack(Entry(f"{i}.png", IMAGE) for i in range(rows))),
    "delta": write_delta,
    "iceberg": write_iceberg,
    "toy": shards(TOY_FILES, lambda rows: "\n".join([IMAGE.hex()] * rows).encode()),
}
"""Format -> function that writes NUM_ROWS rows; a new format needs a line here."""
FIELDS: dict[str, dict[str, Any]] = {
    "jsonl": {"image_encoding": "base64"},
    "csv": {"image_encoding": "base64"},
}
"""Format -> what a job must say besides."""


@pytest.fixture(autouse=True)
def _with_toy(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(toy_package.install(tmp_path_factory.mktemp("site"), POINTS))


@pytest.fixture(params=[*WRITERS])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    WRITERS[request.param](tmp_path)
    return Source(uri=str(tmp_path), format=request.param, **FIELDS.get(request.param, {}))


def units_of(source: Source, inputs: Inputs, rows: int = 3) -> list[Unit]:
    if format_of(source).counts_rows == "reading":
        return [Unit(i, (e,), (), UncountedPlan(rows, 2**30)) for i, e in enumerate(inputs.extents)]
    return list(make_units(inputs.extents, SliceSizes(rows)))


def reader_of(source: Source, inputs: Inputs) -> Reader:
    store = Store(inputs.root, source.storage_options)
    return Reader(store, source, inputs.pass_through, inputs.fields, table=inputs.table)


def read(
    source: Source, inputs: Inputs, ctimes_ns: Mapping[str, int] | None = None
) -> Iterator[pa.Table]:
    reader = reader_of(source, inputs)
    for unit in with_ctimes(units_of(source, inputs), ctimes_ns or {}):
        starts = [] if unit.cut else [key.start for key in unit.slices()]
        for key, _, rows in read_slices(reader, unit, frozenset(starts)):
            assert rows.num_rows == key.num_rows
            assert rows.schema.equals(reader.schema)
            yield rows


def test_every_registered_format_is_tried_here():
    assert set(registry.names(registry.SOURCES)) == set(WRITERS)


def test_a_format_says_what_it_is(source: Source):
    form: SourceFormat = format_of(source)
    assert form.name == source.format
    assert form.suffixes
    assert all(suffix == suffix.lower() and suffix[0] == "." for suffix in form.suffixes)
    assert form.counts_rows in ("listing", "footer", "reading")
    assert form.row_ids(source) in ("path", "path#row", "column", "key")
    assert form.semantics >= 1
    assert form.fields <= set(Source.model_fields)


@pytest.mark.parametrize(("name", "fields"), [("images", {}), ("audio", {"input": "audio"})])
def test_a_tar_takes_members_of_all_names_that_files_have(
    name: str, fields: dict[str, Any], tmp_path: Path
):
    suffixes = registry.load(registry.SOURCES, name).suffixes
    (tmp_path / "a.tar").write_bytes(pack(Entry(f"{s[1:]}{s}", IMAGE) for s in suffixes))
    source = Source(uri=str(tmp_path), format="webdataset", **fields)
    rows = pa.concat_tables(read(source, list_inputs(source, max_extent_rows=4)))
    assert rows.column(ERROR).null_count == rows.num_rows == len(suffixes)


# The files of an Iceberg table cannot be moved: its metadata names whole paths.
@pytest.mark.parametrize("name", [name for name in WRITERS if name not in ("iceberg", "toy")])
def test_a_file_that_may_not_be_read_costs_its_rows(name: str, s3: S3Server, tmp_path: Path):
    WRITERS[name](tmp_path)
    store = s3.store()
    for file in filter(Path.is_file, tmp_path.rglob("*")):
        store.put(str(file.relative_to(tmp_path)), file.read_bytes())
    suffixes = registry.load(registry.SOURCES, name).suffixes
    denied = min(path.name for path in tmp_path.iterdir() if path.suffix in suffixes)
    with FaultProxy(s3.endpoint_url, Rule(DENIED, "GET|HEAD", rf"/{denied}", last=999)) as proxy:
        fields = {**FIELDS.get(name, {}), "storage_options": s3.options_at(proxy.url)}
        source = Source(uri=store.uri, format=name, **fields)
        inputs = list_inputs(source, max_extent_rows=4)
        rows = pa.concat_tables(read(source, inputs)).to_pylist()
    failed = [row for row in rows if row[ERROR]]
    is_row = format_of(source).counts_rows == "listing"
    reason = Reason.ACCESS_DENIED if is_row else Reason.UNREADABLE_SHARD
    assert [(row[ROW_ID], row[ERROR]) for row in failed] == [(denied, reason)]
    assert "access denied" in failed[0]["message"]
    assert len(rows) - 1 == (NUM_ROWS - 1 if is_row else 6)


def test_all_rows_are_read_under_ids_of_their_own(source: Source):
    inputs = list_inputs(source, max_extent_rows=4)
    rows = pa.concat_tables(read(source, inputs))
    assert rows.num_rows == NUM_ROWS
    assert rows.column(ERROR).null_count == NUM_ROWS
    assert len(set(rows.column(ROW_ID).to_pylist())) == NUM_ROWS
    assert all(uri.startswith(inputs.root) for uri in rows.column(URI).to_pylist())
    [name] = inputs.fields.names
    wanted = CLIP if source.format == "audio" else IMAGE
    assert rows.column(name).to_pylist() == [wanted] * NUM_ROWS


@pytest.mark.parametrize("where", ["column", "files of a column", "tar"])
def test_a_clip_is_read_wherever_it_lies(where: str, tmp_path: Path):
    (tmp_path / "in").mkdir()
    given: dict[str, Any] = {"format": "parquet", "audio_column": "clip"}
    column: list[Any] = [CLIP] * 3
    if where == "files of a column":
        (tmp_path / "clips").mkdir()
        write_clips(tmp_path / "clips")
        given = {"format": "parquet", "uri_column": "clip", "input": "audio"}
        given |= {"uri_roots": (str(tmp_path / "clips"),)}
        column = [str(tmp_path / "clips" / f"{row}.wav") for row in range(3)]
    if where == "tar":
        given = {"format": "webdataset", "input": "audio"}
        data = pack(Entry(f"{row}.wav", CLIP) for row in range(3))
        (tmp_path / "in" / "a.tar").write_bytes(data)
    else:
        pq.write_table(pa.table({"clip": column}), tmp_path / "in" / "a.parquet")
    source = Source(uri=str(tmp_path / "in"), **given)
    inputs = list_inputs(source, max_extent_rows=4)
    rows = pa.concat_tables(read(source, inputs))
    assert inputs.fields.names == [AUDIO]
    assert rows.column(AUDIO).to_pylist() == [CLIP] * 3


def test_rows_that_are_counted_before_have_the_planned_ids(source: Source):
    form, inputs = format_of(source), list_inputs(source, max_extent_rows=4)
    if form.counts_rows == "reading":
        assert inputs.num_rows == 0
        return
    assert inputs.num_rows == NUM_ROWS
    planned = [i for e in inputs.extents for i in planned_ids(form.row_ids(source), e)]
    assert pa.concat_tables(read(source, inputs)).column(ROW_ID).to_pylist() == planned


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv", "webdataset"])
def test_a_column_is_published_under_the_name_that_the_job_gives_it(form: str, tmp_path: Path):
    folder = tmp_path / "day=5"
    folder.mkdir()
    columns = {"text": ["a"], "label": ["cat"]}
    fields: dict[str, Any] = {"text_column": "text", "casts": {"on": "int64"}}
    fields["pass_through"] = {"true_label": "label", "on": "day"}
    if form == "parquet":
        pq.write_table(pa.table(columns), folder / "a.parquet")
    elif form == "webdataset":
        members = [Entry("1.png", IMAGE), Entry("1.label", b"cat")]
        (folder / "a.tar").write_bytes(pack(members))
        fields = {"pass_through": {"true_label": "label"}}
    else:
        data = {"jsonl": '{"text": "a", "label": "cat"}', "csv": "text,label\na,cat\n"}[form]
        (folder / f"a.{form}").write_text(data)
    source = Source(uri=str(tmp_path), format=form, **fields)
    [rows] = read(source, list_inputs(source, max_extent_rows=4))
    assert rows.column(ERROR).null_count == 1
    assert rows.column("true_label").to_pylist() == ["cat"]
    assert "label" not in rows.column_names
    assert form == "webdataset" or rows.column("on").to_pylist() == [5]


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv"])
def test_the_value_of_a_folder_comes_before_a_column_of_its_name(form: str, tmp_path: Path):
    for year in (2025, 2026):
        folder = tmp_path / f"year={year}"
        folder.mkdir()
        if form == "parquet":
            inside: Any = 1999 if year == 2025 else "none"
            pq.write_table(pa.table({"n": [1], "year": [inside]}), folder / "a.parquet")
        else:
            data = {"jsonl": '{"n": 1, "year": 1999}', "csv": "n,year\n1,1999\n"}[form]
            (folder / f"a.{form}").write_text(data)
    source = Source(uri=str(tmp_path), format=form, features=("n", "year"), pass_through=("year",))
    rows = pa.concat_tables(read(source, list_inputs(source, max_extent_rows=4)))
    assert rows.column("year").to_pylist() == ["2025", "2026"]
    assert rows.column("features").to_pylist() == [[1, 2025], [1, 2026]]
    changes = {"features": ("n",), "id_column": "year", "pass_through": ()}
    source = source.model_copy(update=changes)
    [rows, *_] = read(source, list_inputs(source, max_extent_rows=4))
    assert rows.column(ROW_ID)[0].as_py() == "1999", "an id is never that of a folder"


@pytest.mark.parametrize("name", ["label", "error", "image", "score"])
def test_a_name_that_the_output_makes_is_refused_with_the_line_that_cures_it(
    name: str, tmp_path: Path
):
    columns = {"text": ["a"], "n": [1], name: [2]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    given: dict[str, Any] = {"uri": str(tmp_path), "format": "parquet", "text_column": "text"}
    with pytest.raises(JobError, match=f"{name} is a column that the output makes") as caught:
        list_inputs(Source(**given, pass_through=("n", name)), max_extent_rows=4)
    cure = yaml.safe_load(str(caught.value).partition("under another name, ")[2])
    source = Source(**given, **cure)
    [rows] = read(source, list_inputs(source, max_extent_rows=4))
    assert rows.column("n").to_pylist() == [1]
    assert rows.column(f"source_{name}").to_pylist() == [2]


def test_slices_that_are_done_are_passed_over(source: Source):
    inputs = list_inputs(source, max_extent_rows=4)
    unit = units_of(source, inputs, rows=2)[-1]
    reader = reader_of(source, inputs)
    starts = frozenset() if unit.cut else frozenset(key.start for key in unit.slices())
    every = list(read_slices(reader, unit, starts))
    for passed, (key, _, _) in enumerate(every):
        if unit.cut is None:
            left = list(read_slices(reader, unit, starts - {key.start}))
        else:
            cut = UncountedPlan(2, 2**30, done=(key,))
            left = list(read_slices(reader, Unit(unit.index, unit.extents, (), cut), starts))
        wanted = every[:passed] + every[passed + 1 :]
        assert [key for key, _, _ in left] == [key for key, _, _ in wanted]
        for (_, _, one), (_, _, other) in zip(left, wanted, strict=True):
            assert one.equals(other)


def test_a_broken_shard_costs_its_own_rows(source: Source, tmp_path: Path):
    form = format_of(source)
    if form.counts_rows == "listing":
        return  # a file is a row: decoding finds the damage
    name = f"{'a' if form.is_lake else '0'}{form.suffixes[0]}"  # a table names its files
    (tmp_path / name).write_bytes(b"\xff\x00 nothing of this kind")
    inputs = list_inputs(source, max_extent_rows=4)
    rows = pa.concat_tables(read(source, inputs))
    failed = rows.filter(rows.column(ERROR).is_valid())
    assert failed.column(ROW_ID).to_pylist() == [name]
    assert failed.column(ERROR).to_pylist() == [Reason.UNREADABLE_SHARD.value]
    assert rows.num_rows == NUM_ROWS + 1 - (4 if form.is_lake else 0)


def rewritten(path: Path) -> None:
    """Write other content of the same size in place, and put the mtime back."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(path.read_bytes()[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def replaced(path: Path) -> None:
    """Put another file of the same size and mtime in its place."""
    before, other = path.stat(), path.with_name(".other")
    other.write_bytes(path.read_bytes()[::-1])
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [rewritten, replaced])
@pytest.mark.parametrize("num_read", [0, 1, 2])
def test_other_content_of_the_same_size_and_time_ends_the_run(
    source: Source, change: Callable[[Path], None], num_read: int, tmp_path: Path
):
    inputs = list_inputs(source, max_extent_rows=4)
    files = sorted(path for path in tmp_path.iterdir() if path.is_file())
    tables = read(source, inputs, {shard.path: shard.ctime_ns for shard in inputs.shards})
    for _ in range(num_read):
        next(tables)
    # After one slice the first shard is open if only reading counts rows; after two the last is.
    is_first = num_read < 2 and format_of(source).counts_rows == "reading"
    change(files[0] if is_first else files[-1])
    with pytest.raises(InfraError, match="changed since it was"):
        list(tables)


def test_an_unknown_format_is_refused_with_those_that_there_are(tmp_path: Path):
    with pytest.raises(
        ValidationError,
        match=r"'images', 'audio', 'parquet', 'delta', .*, 'jsonl', 'csv', 'webdataset' or 'toy'",
    ):
        Source(uri=str(tmp_path), format="avro")


def test_options_are_those_of_the_format(tmp_path: Path):
    assert Source(uri="in", format="toy", options={"prefix": "0x"}).options == {"prefix": "0x"}
    with pytest.raises(ValidationError, match=r"options\.prefx: unknown key"):
        Source(uri="in", format="toy", options={"prefx": "0x"})
    with pytest.raises(ValidationError, match="options has no effect with format 'images'"):
        Source(uri="in", format="images", options={"prefix": "0x"})
    with pytest.raises(ValidationError, match="id_column has no effect with format 'toy'"):
        Source(uri="in", format="toy", id_column="x")
