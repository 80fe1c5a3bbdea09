"""4,500 damaged shards, tars, images and names, other ones each time (`make long`).

Whatever lies in the source, a run ends with a documented exit code and leaves a report; every file
is a shard or counted as skipped, every row predicted or quarantined, every sound row predicted.
A failure prints its seed: PIPELINE_FUZZ_SEED repeats it.
"""

from __future__ import annotations

import datetime as dt
import io
import os
import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.inputs.badfiles import bad_files
from support.inputs.damage import damaged, damaged_end
from support.inputs.encoded import base_image, encode
from support.inputs.tars import Entry, pack
from support.runs.cli import Result, pipeline, write_job
from support.runs.published_rows import read_predictions

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import current_manifest
from pipeline.commit.plan_store import read_plan
from pipeline.storage.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.one_ray, pytest.mark.timeout(1800)]

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


@pytest.mark.parametrize("what", ["parquet", "tars", "images", "names"])
def test_what_is_damaged_costs_only_itself_and_any_name_is_a_row_or_counted(
    what: str, tmp_path: Path
):
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
