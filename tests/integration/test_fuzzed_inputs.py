"""5,000 damaged job files, clips, CSV shards and schemas of records: read, or refused in one line.

Whatever they say, the only errors are those of a job, or of a single row. Other ones each time
(`make long`); PIPELINE_FUZZ_SEED repeats a seed that failed.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import random
import secrets
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from support.inputs.clips import encoded, tone
from support.inputs.damage import changed, damaged
from support.inputs.jsonl_shards import read_all
from support.models.record_schemas import REVIEW

from pipeline.core.errors import JobError
from pipeline.core.schema import ERROR, ROW_ID
from pipeline.job.reading.loader import read_job
from pipeline.job.source import Source
from pipeline.models.generate.records import record_of
from pipeline.models.generate.schema import SchemaError, canonical
from pipeline.preprocessing.audio.decode import Undecodable, decode_clip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SEED = int(os.environ.get("PIPELINE_FUZZ_SEED") or secrets.randbits(32))
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
def test_what_is_damaged_is_read_or_refused_in_one_line(case: Case, tmp_path: Path):
    rng, num_refused = random.Random(SEED), 0
    for number in range(NUM_CASES):
        try:
            why = case(tmp_path, rng)
        except BaseException as error:
            raise AssertionError((SEED, number)) from error
        assert not {"\n", "\x1b"} & {*why}, (SEED, number, why)
        num_refused += bool(why)
    assert 0 < num_refused < NUM_CASES
