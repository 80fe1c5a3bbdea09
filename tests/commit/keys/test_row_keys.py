"""Each prediction that has a hash is found by it, whatever is computed, carried, cut or sorted."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.runs.published import DAY, encode, run_here

from pipeline.commit.keys import key_index, row_keys
from pipeline.commit.keys.bucket import read_bucket
from pipeline.commit.keys.key_index import UNKNOWN, KeyIndex
from pipeline.commit.keys.meta import About, VersionKeys, bucket_name
from pipeline.commit.keys.row_keys import KeyWriter, write_buckets
from pipeline.commit.parts.compaction import SizedSlice
from pipeline.core.errors import InfraError
from pipeline.core.schema import ERROR, INPUT_HASH
from pipeline.core.slices import SliceKey
from pipeline.planning.carried import Source, no_runs
from pipeline.storage.store import Store

ABOUT = About("predictor", "settings", "content")


def hash_of(number: int | None) -> bytes | None:
    """Of some content; None of a row without a hash."""
    return None if number is None else hashlib.sha256(b"%d" % number).digest()[:16]


@dataclass(frozen=True)
class Row:
    """A row of the work plan."""

    content: int | None
    """None: it has no hash."""
    fate: str = "good"
    """Or `failed`, or `duplicate` of another row's id."""


@dataclass(frozen=True)
class Run:
    """Carried predictions."""

    at: int
    """Before which row of the work plan, modulo their number."""
    source: int
    first: int
    num_rows: int


CONTENTS = st.one_of(st.none(), st.integers(0, 40))
ROWS = st.lists(st.builds(Row, CONTENTS, st.sampled_from(["good", "good", "failed", "duplicate"])))
OLD = st.lists(st.lists(CONTENTS, min_size=1, max_size=30), min_size=1, max_size=3)
NUMBERS = st.lists(st.integers(0, 40), max_size=4)
RUNS = st.lists(st.builds(Run, *(st.integers(0, 40) for _ in range(4))), max_size=6)
BUCKET_ROWS = st.sampled_from([3, 8, 1000])


def cut(num_rows: int, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """Cut rows into pieces, some of them empty."""
    bounds = sorted([0, num_rows, *(each % (num_rows + 1) for each in cuts)])
    return list(pairwise(bounds))


def stage(store: Store, rows: Sequence[Row], cuts: Sequence[int]) -> list[SizedSlice]:
    """Stage rows in slices; each slice is a unit, and every second one counts as a large file."""
    slices = []
    pieces = [piece for piece in cut(len(rows), cuts) if piece[1] > piece[0]]
    for unit, (start, end) in enumerate(pieces):
        own = rows[start:end]
        table = pa.table(
            {
                ERROR: pa.array(["bad" if r.fate == "failed" else None for r in own], pa.string()),
                INPUT_HASH: pa.array([hash_of(row.content) for row in own], pa.binary(16)),
                "more": [1.0] * len(own),
            }
        )
        if all(row.content is None for row in own):
            table = table.drop_columns([INPUT_HASH])
        store.put(path := f"staged/{unit}", encode(table))
        slices.append((SliceKey(unit, 0, end - start, is_last=True), path, (unit % 2) * 1e6))
    return slices


def make_version(
    store: Store,
    number: int,
    rows: Sequence[Row],
    cuts: Sequence[int],
    runs: Sequence[Run] = (),
    sources: Sequence[tuple[VersionKeys, Sequence[int | None]]] = (),
    gone: Sequence[int] = (),
) -> tuple[VersionKeys, list[int | None]]:
    """Write the hashes of a version; return its keys, and the content of each prediction."""
    slices = stage(store, rows, cuts)
    begins = np.cumsum([0, *(key.num_rows for key, _, _ in slices)])
    contents: list[int | None] = []
    table: list[tuple[int, ...]] = []
    ordered = sorted(runs, key=lambda run: run.at % (len(rows) + 1))
    for row in range(len(rows) + 1):
        for run in ordered if sources else ():
            if run.at % (len(rows) + 1) == row:
                source = run.source % len(sources)
                old = sources[source][1]
                first = run.first % len(old)
                taken = old[first : first + run.num_rows]
                unit = int(np.searchsorted(begins, row, "right")) - 1
                table.append((unit, row - int(begins[unit]), source, first, len(taken)))
                before = sum(keys.num_rows for keys, _ in sources[:source])
                contents += [
                    content
                    for ordinal, content in enumerate(taken, first)
                    if before + ordinal not in gone
                ]
        if row < len(rows) and rows[row].fate == "good":
            contents.append(rows[row].content)
    part_rows = [end - start for start, end in cut(len(contents), cuts)]
    writer = KeyWriter(
        store,
        folder := f"keys/{number}",
        f"spilled/{number}",
        tuple(part_rows),
        {
            key: tuple(row for row in range(key.num_rows) if rows[begin + row].fate == "duplicate")
            for (key, _, _), begin in zip(slices, begins.tolist(), strict=False)
        },
        tuple(keys for keys, _ in sources),
    )
    carried = np.array(table, np.int64).reshape(-1, 5) if table else no_runs()
    files = write_buckets(writer, slices, carried, run_here, gone=np.array(gone, np.int64))
    source = Source(DAY, number, "token")
    buckets = writer.num_buckets
    assert sorted(files) == [bucket_name(bucket) for bucket in range(buckets)]
    return VersionKeys(store, source, folder, ABOUT, tuple(part_rows), files, buckets), contents


def assert_found(keys: VersionKeys, contents: Sequence[int | None]) -> None:
    """Each ordinal has the hash of its content, in files and in the index; others are unknown."""
    written = {}
    for number in range(keys.num_buckets):
        bucket = read_bucket(keys, number)
        halves = np.stack([bucket.high, bucket.low], axis=1).astype(">i8")
        written |= dict(zip(bucket.ordinals.tolist(), map(bytes, halves), strict=True))
    expected = {i: hash_of(c) for i, c in enumerate(contents) if c is not None}
    assert written == expected
    asked = [hash_of(content) or b"" for content in range(60)]
    found = KeyIndex(keys).find(np.frombuffer(b"".join(asked), np.uint8).reshape(-1, 16))
    for content, ordinal in enumerate(found.tolist()):
        assert contents[ordinal] == content if ordinal != UNKNOWN else content not in contents


@settings(max_examples=40)
@given(OLD, ROWS, RUNS, NUMBERS, NUMBERS, BUCKET_ROWS, BUCKET_ROWS, st.sampled_from([4, 1000]))
def test_hashes_of_computed_and_of_carried_rows_lead_to_the_predictions(
    tmp_path_factory, old, rows, runs, gone, cuts, old_bucket_rows, bucket_rows, chunk_rows
):
    store = Store(str(tmp_path_factory.mktemp("version")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(row_keys, "CHUNK_ROWS", chunk_rows)
        patch.setattr(row_keys, "BUCKET_ROWS", old_bucket_rows)
        patch.setattr(key_index, "_BLOCK_ROWS", 7)
        sources = [
            make_version(store, number, [Row(content) for content in contents], cuts)
            for number, contents in enumerate(old)
        ]
        patch.setattr(row_keys, "BUCKET_ROWS", bucket_rows)
        keys, contents = make_version(store, 9, rows, cuts, runs, sources, gone)
        for known in [*sources, (keys, contents)]:
            assert_found(*known)


def test_where_only_the_second_half_differs_the_right_row_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = bytes(range(8))
    hashes = [first + bytes([n] * 8) for n in (7, 3, 200, 3, 9)]
    store = Store(str(tmp_path / "out"))
    table = pa.table({ERROR: pa.nulls(5, pa.string()), INPUT_HASH: pa.array(hashes, pa.binary(16))})
    store.put("staged", encode(table))
    slices = [(SliceKey(0, 0, 5, is_last=True), "staged", 1.0)]
    writer = KeyWriter(store, "keys", "spilled", (5,), {})
    files = write_buckets(writer, slices, no_runs(), run_here)
    keys = VersionKeys(store, Source(DAY, 1, "t"), "keys", ABOUT, (5,), files, 1)
    asked = [*hashes, first + bytes(8), first + bytes([255] * 8), bytes(16), bytes([255] * 16)]
    found = KeyIndex(keys).find(np.frombuffer(b"".join(asked), np.uint8).reshape(-1, 16)).tolist()
    assert found[4:] == [4, *[UNKNOWN] * 4]
    assert (found[0], found[2]) == (0, 2)
    assert found[1] == found[3]
    assert found[1] in (1, 3)


@pytest.mark.parametrize("bucket_rows", [2, 1000])
def test_parts_of_other_rows_than_the_staged_ones_are_not_published(
    tmp_path, monkeypatch, bucket_rows
):
    monkeypatch.setattr(row_keys, "BUCKET_ROWS", bucket_rows)
    store = Store(str(tmp_path))
    slices = stage(store, [Row(1), Row(2), Row(3)], [1])
    writer = KeyWriter(store, "keys", "spilled", (4,), {})
    with pytest.raises(InfraError, match="3 predictions are staged or carried, but 4 were written"):
        write_buckets(writer, slices, no_runs(), run_here)


def test_rows_that_are_carried_from_a_damaged_file_get_no_keys(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = Store(str(tmp_path / "out"))
    old, contents = make_version(store, 1, [Row(1), Row(2)], [])
    [(name, file)] = old.files.items()
    damaged = dataclasses.replace(old, files={name: dataclasses.replace(file, sha256="")})
    runs = [Run(0, 0, 0, 2)]
    keys, contents = make_version(store, 2, [Row(3)], [], runs, [(damaged, contents)])
    assert contents == [1, 2, 3]
    assert_found(keys, [None, None, 3])
    assert "bucket=000.parquet of its keys is damaged: rows that are carried" in caplog.text
