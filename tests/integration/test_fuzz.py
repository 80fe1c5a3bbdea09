"""No row is lost to damage: 10,500 damaged inputs, jobs and models, new ones in each `make long`.

Whatever lies in the source, a run ends with a documented exit code and leaves a report; every file
is a shard or counted as skipped, every row predicted or quarantined, every sound row predicted. Job
files, clips, CSV shards, schemas of records and .onnx files are read or refused in one line, in
bounded memory. A failure prints its seed: PIPELINE_FUZZ_SEED repeats it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import json
import os
import random
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto
from support.inputs.badfiles import bad_files
from support.inputs.clips import encoded, tone
from support.inputs.damage import changed, damaged, damaged_end
from support.inputs.encoded import base_image, encode
from support.inputs.jsonl_shards import read_all
from support.inputs.tars import Entry, pack
from support.models import onnx_files
from support.models.record_schemas import REVIEW
from support.runs.cli import Result, environment, pipeline, write_job
from support.runs.published_rows import read_predictions
from support.servers.commandserver import OF_CHECKS, CommandServer

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import current_manifest
from pipeline.commit.plan_store import read_plan
from pipeline.core.errors import JobError
from pipeline.core.schema import ERROR, ROW_ID
from pipeline.job.reading.loader import read_job
from pipeline.job.source import Source
from pipeline.models.generate.records import record_of
from pipeline.models.generate.schema import SchemaError, canonical
from pipeline.preprocessing.audio.decode_clip import Undecodable, decode_clip
from pipeline.storage.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

TODAY = dt.date(2026, 11, 24)
DAY = f"date={TODAY}"
SEED = int(os.environ.get("PIPELINE_FUZZ_SEED") or secrets.randbits(32))
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
SUFFIX = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
GATES = {"max_error_pct": 100.0, "constant": {"mode": "off"}, "allow_empty": True}


@dataclass(frozen=True)
class Fuzzed:
    """What was written below the source."""

    num_files: int
    sound_ids: frozenset[str]
    """Rows that nothing was done to."""


@pytest.mark.one_ray
@pytest.mark.parametrize("what", ["parquet", "tars", "images", "names"])
def test_damage_costs_only_its_rows_and_any_name_is_a_row_or_counted(what: str, tmp_path: Path):
    source, write, num_folders, num_files = FUZZED[what]
    rng = random.Random(f"{SEED} {what}")
    for index in range(num_folders):
        folder = tmp_path / str(index)
        check(folder, source, write(folder, rng, num_files))


def check(folder: Path, source: dict[str, Any], fuzzed: Fuzzed) -> None:
    """Run a job over what was made, and account for all of it."""
    out = str(folder / "out")
    given = {"uri": str(folder / "in"), **source}
    job = write_job(folder / "job.yaml", given, out, gates=GATES, run={"row_timeout_s": 20.0})
    done = pipeline("run", job, "--date", "2026-11-24", "--json", "--quiet", timeout_s=1200)
    tail = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    context = f"seed {SEED}, {folder.name}: exit {done.code}\n{tail}"
    assert done.code == 0, context
    assert list((folder / "out" / "reports").rglob("report.json")), context
    account(done, out, fuzzed, context)


def account(done: Result, out: str, fuzzed: Fuzzed, context: str) -> None:
    rows, skipped = done.json["rows"], done.json["skipped"]
    assert rows["total"] == rows["predicted"] + rows["quarantined"], context
    manifest = current_manifest(Store(out), Layout(DAY))
    assert manifest is not None, context
    plan = read_plan(Store(out), Layout(DAY), manifest.plan_name)
    assert fuzzed.num_files == plan.num_shards + skipped["files"], context
    row_ids = set(read_predictions(out, DAY).column("row_id").to_pylist())
    assert fuzzed.sound_ids <= row_ids, (sorted(fuzzed.sound_ids - row_ids)[:5], context)


def parquet_shards(folder: Path, rng: random.Random, num_shards: int) -> Fuzzed:
    """Write shards of four rows; one in ten stays sound."""
    (folder / "in").mkdir(parents=True)
    sound: set[str] = set()
    for shard in range(num_shards):
        ids = [f"{shard}-{row}" for row in range(4)]
        data = parquet_bytes(ids, rng)
        if shard % 10:
            data = rng.choice((damaged, damaged_end))(data, rng)
        else:
            sound.update(ids)
        (folder / "in" / f"{shard:04d}.parquet").write_bytes(data)
    return Fuzzed(num_shards, frozenset(sound))


def parquet_bytes(ids: list[str], rng: random.Random) -> bytes:
    rows = {
        "id": pa.array(ids),
        "image": pa.array([small_image(rng) for _ in ids], pa.binary()),
        "taken_at": pa.array([rng.randrange(2**40) for _ in ids], pa.timestamp("us")),
    }
    buffer = io.BytesIO()
    codec = rng.choice(("none", "snappy", "zstd", "gzip"))
    pq.write_table(pa.table(rows), buffer, row_group_size=rng.choice((1, 2, 4)), compression=codec)
    return buffer.getvalue()


def tars(folder: Path, rng: random.Random, num_shards: int) -> Fuzzed:
    """Write tars of four images; one in ten stays sound."""
    (folder / "in").mkdir(parents=True)
    sound: set[str] = set()
    for shard in range(num_shards):
        names = [f"{shard:04d}-{row}" for row in range(4)]
        data = pack(Entry(f"{name}.jpg", small_image(rng, "JPEG")) for name in names)
        file_name = f"{shard:04d}.tar"
        if shard % 10:
            data = damaged(data, rng)
        else:
            sound.update(f"{file_name}/{name}" for name in names)
        (folder / "in" / file_name).write_bytes(data)
    return Fuzzed(num_shards, frozenset(sound))


def images(folder: Path, rng: random.Random, num_files: int) -> Fuzzed:
    """Write damaged images, files that must be refused, and sound ones."""
    (folder / "in").mkdir(parents=True)
    refused = bad_files(rng.randrange(2**31))
    sound: set[str] = set()
    for index in range(num_files):
        format_name = rng.choice(FORMATS)
        name, data = f"{index:04d}.{SUFFIX[format_name]}", small_image(rng, format_name)
        if index % 10 == 0:
            sound.add(name)
        elif index % 10 == 1:
            data = rng.choice(refused).data
        else:
            data = damaged(data, rng)
        (folder / "in" / name).write_bytes(data)
    return Fuzzed(num_files, frozenset(sound))


def odd_names(folder: Path, rng: random.Random, num_files: int) -> Fuzzed:
    """Write sound images under random names, which may be no UTF-8, hidden or markers."""
    (folder / "in").mkdir(parents=True)
    root, written = os.fsencode(folder / "in"), set[bytes]()
    data = small_image(rng, "PNG")
    while len(written) < num_files:
        name = odd_name(rng)
        path = os.path.join(root, name)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "xb") as file:
                file.write(data)
        except OSError:  # too long, there already, or a file lies where a folder has to be
            continue
        written.add(name)
    (folder / "in" / "plain.png").write_bytes(data)
    return Fuzzed(num_files + 1, frozenset({"plain.png"}))


def odd_name(rng: random.Random) -> bytes:
    parts = [_PIECES[rng.randrange(len(_PIECES))](rng) for _ in range(rng.randint(1, 4))]
    name = b"".join(parts).replace(b"\0", b"0").strip(b"/")
    return (name or b"x") + rng.choice((b".png", b".PNG", b".png", b".txt", b"", b".heic"))


_PIECES: tuple[Callable[[random.Random], bytes], ...] = (
    lambda rng: rng.randbytes(rng.randint(1, 12)).replace(b"/", b"-"),
    lambda rng: "".join(chr(rng.randrange(32, 0xD800)) for _ in range(4)).encode(),
    lambda rng: rng.choice((b"_", b".", b"..x", b"_SUCCESS", b"_delta_log", b"-", b" ", b"~")),
    lambda rng: rng.choice((b"a/b", b"_temporary/", b"x=1/", b"date=/", b"%2F", b"#", b"?", b"*")),
    lambda rng: rng.choice((b"\n", b"\x1b[31m", b"\r", b"\t", b"[1]", b"{a}", b'"', b"'", b"\\")),
    lambda rng: ("\u202e" + "é" * rng.randint(1, 3)).encode(),
)


def small_image(rng: random.Random, format_name: str | None = None) -> bytes:
    return encode(base_image(rng.randrange(8)), format_name or rng.choice(FORMATS))


FUZZED: dict[str, tuple[dict[str, Any], Callable[[Path, random.Random, int], Fuzzed], int, int]] = {
    "parquet": ({"format": "parquet", "id_column": "id"}, parquet_shards, 10, 150),
    "tars": ({"format": "webdataset"}, tars, 8, 125),
    "images": ({"format": "images"}, images, 5, 300),
    "names": ({"format": "images"}, odd_names, 2, 250),
}
"""Fields of the source, what writes a folder, how many folders, and how many files in each."""


NUM_CASES = 1_250
JOBS = Path(__file__).parents[2] / "jobs"
ROWS = b"t,n\na,1\n" + b'"two\nlines",2\n"a ""b""",3\n\xc3\xa4,4\n' * 200
RECORD = {"mood": "good", "stars": 3, "named": ["a"], "sure": None, "place": {"row": 7}}
Case = Callable[[Path, random.Random], str]
"""Reads something damaged; returns why it was refused, or ''."""


def job(folder: Path, rng: random.Random) -> str:
    data = rng.choice(sorted(JOBS.glob("*.yaml"))).read_bytes()
    (folder / "job.yaml").write_bytes(damaged(data, rng))
    try:
        read_job(str(folder / "job.yaml"), date=dt.date(2026, 11, 24))
    except JobError as error:
        return str(error).splitlines()[0]
    return ""


@cache
def clip(format_name: str) -> bytes:
    return encoded(tone(), format_name)


def sound(folder: Path, rng: random.Random) -> str:
    data = damaged(clip(rng.choice(("WAV", "FLAC", "OGG", "MP3"))), rng)
    try:
        decoded = decode_clip(data, 1 << 20, 60.0)
    except Undecodable as error:
        return str(error)
    assert len(decoded.samples) > 0
    return ""


def table(folder: Path, rng: random.Random) -> str:
    (folder / "a.csv").write_bytes(damaged(ROWS, rng))
    source = Source(uri=str(folder), format="csv", text_column="t", casts={"n": "int64"},
                    pass_through=("n",))  # fmt: skip
    try:
        rows = read_all(source)
    except JobError as error:
        return str(error)
    assert len({*rows.column(ROW_ID).to_pylist()}) == rows.num_rows
    return "" if rows.column(ERROR).null_count == rows.num_rows else "rows"


def schema(folder: Path, rng: random.Random) -> str:
    try:
        text = canonical(changed(REVIEW, rng))
    except SchemaError as error:
        return str(error)
    written = damaged(json.dumps(RECORD).encode(), rng).decode("latin-1")
    with contextlib.suppress(ValueError):  # says where the record is wrong
        record_of(text).read(written)
    return ""


@pytest.mark.parametrize("case", [job, sound, table, schema], ids=lambda case: case.__name__)
def test_damaged_files_are_read_or_refused_in_one_line(case: Case, tmp_path: Path):
    rng, num_refused = random.Random(SEED), 0
    for number in range(NUM_CASES):
        try:
            why = case(tmp_path, rng)
        except BaseException as error:
            raise AssertionError((SEED, number)) from error
        assert not {"\n", "\x1b"} & {*why}, (SEED, number, why)
        num_refused += bool(why)
    assert 0 < num_refused < NUM_CASES


NUM_FILES = 1_000
MAX_MORE_BYTES = 512 << 20
REFUSED, NO_RAY = 2, 7
ESCAPE = "\x1b]0;TITLE\x07\n2026-01-01 ERROR forged line"
NUMBERS = (-(2**63), -1, 0, 1, 2, 3, 7, 2**31, 2**40, 2**62)
OPERATORS = ("Loop", "If", "Pad", "Expand", "Tile", "Reshape", "Cast", "RandomNormal", "NoSuch", "")
SOURCE = [f"f{number}" for number in range(onnx_files.NUM_FEATURES)]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandServer]:
    cache = {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}
    with CommandServer(environment(cache), ("ray.data", *OF_CHECKS), is_limited=True) as forked:
        yield forked


def test_damaged_onnx_files_are_refused_in_one_line_or_run(commands: CommandServer, tmp_path: Path):
    rng = random.Random(SEED)
    columns = {name: pa.array([0.5, 1.0], pa.float32()) for name in SOURCE}
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "in" / "s.parquet")
    source = {"uri": str(tmp_path / "in"), "format": "parquet", "features": SOURCE}
    codes = []
    for number in range(NUM_FILES):
        model = tmp_path / "model.onnx"
        model.write_bytes(damaged_file(rng))
        job = write_job(
            tmp_path / "job.yaml",
            source,
            str(tmp_path / "out"),
            model={"path": str(model), "task": rng.choice(("classify", "regress", "embed"))},
            transform=None,
        )
        ended = commands.run(*("run", job, "--date", "2026-11-24", "--address", "127.0.0.1:1"))
        what = f"seed {SEED}, file {number}: exit {ended.code}\n{ended.stderr}"
        assert ended.code in (REFUSED, NO_RAY), what
        assert ended.more_bytes < MAX_MORE_BYTES, f"{ended.more_bytes / 2**20:.0f} MiB, {what}"
        assert "\x1b" not in ended.stderr, what
        lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, what
        assert not any(line.startswith("2026-01-01") for line in ended.stderr.splitlines()), what
        codes.append(ended.code)
    assert {*codes} == {REFUSED, NO_RAY}, "most damage matters, and some does not"


def damaged_file(rng: random.Random) -> bytes:
    make: Callable[[], Any] = rng.choice(
        (
            onnx_files.features_model,
            lambda: onnx_files.features_model(softmax=True),
            onnx_files.classifier,
            lambda: onnx_files.classifier((3, 5, 8), zipped=None),
        )
    )
    model = make()
    if rng.random() < 0.4:
        return damaged(model.SerializeToString(), rng)
    for _ in range(rng.choice((1, 1, 2))):
        rng.choice(CHANGES)(model, rng)
    return bytes(model.SerializeToString())


def _operator(model: onnx.ModelProto, rng: random.Random) -> None:
    rng.choice(model.graph.node).op_type = rng.choice(OPERATORS)


def _domain(model: onnx.ModelProto, rng: random.Random) -> None:
    rng.choice(model.graph.node).domain = rng.choice(("ai.onnx.ml", "com.microsoft", "x", ESCAPE))


def _name(model: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice(model.graph.node)
    node.name = ESCAPE
    if rng.random() < 0.5:
        node.output[0] = rng.choice((ESCAPE, "", "logits", "x"))


def _wiring(model: onnx.ModelProto, rng: random.Random) -> None:
    names = [name for node in model.graph.node for name in (*node.input, *node.output)]
    node = rng.choice(model.graph.node)
    node.input[rng.randrange(len(node.input))] = rng.choice(names)


def _attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    attribute = (
        rng.choice(attributes) if attributes else model.graph.node[0].attribute.add(name="axis")
    )
    attribute.type = rng.choice((1, 2, 3, 6, 7, 8))
    attribute.i = rng.choice(NUMBERS)
    attribute.f = rng.choice((float("nan"), float("inf"), 1e38))
    attribute.ints.extend(rng.choices(NUMBERS, k=rng.randrange(4)))


def _dimension(model: onnx.ModelProto, rng: random.Random) -> None:
    ends = [*model.graph.input, *model.graph.output]
    shape = rng.choice(ends).type.tensor_type.shape
    if shape.dim and rng.random() < 0.8:
        rng.choice(shape.dim).dim_value = rng.choice(NUMBERS)
    else:
        shape.dim.add(dim_value=rng.choice(NUMBERS))


def _type(model: onnx.ModelProto, rng: random.Random) -> None:
    ends = [*model.graph.input, *model.graph.output]
    kinds = (TensorProto.STRING, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.BOOL, 99)
    rng.choice(ends).type.tensor_type.elem_type = rng.choice(kinds)


def _initializer(model: onnx.ModelProto, rng: random.Random) -> None:
    if not model.graph.initializer:
        return
    tensor = rng.choice(model.graph.initializer)
    tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(NUMBERS)


def _opset(model: onnx.ModelProto, rng: random.Random) -> None:
    model.opset_import[0].version = rng.choice(NUMBERS)


CHANGES = (
    *(_operator, _domain, _name, _wiring, _attribute, _dimension, _type, _initializer, _opset),
)
