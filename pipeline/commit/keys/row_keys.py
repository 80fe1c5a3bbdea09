"""Write the hashes of a version's rows: sorted, in as many files as their number asks for.

The hashes of computed rows are in the staged slices, those of carried rows in the files of the
versions that they come from. Tasks first read a chunk of slices each and lay its hashes down bucket
by bucket; then a task per bucket puts together what is of it. So memory is that of a chunk or of a
bucket, however many rows there are. If all fit into one bucket, one task does both.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commit.keys.bucket import (
    HASH_BYTES,
    Bucket,
    buckets_of,
    halves,
    read_bucket,
    write_bucket,
)
from pipeline.commit.keys.meta import KeyFile, NoKeys, VersionKeys, bucket_name
from pipeline.commit.parts.carried.order import Ranges, put_in_order, steps
from pipeline.commit.parts.compaction import DuplicateRows, RunTasks, SizedSlice
from pipeline.commit.parts.part_reader import read_columns
from pipeline.core.arrays import Numbers, as_array
from pipeline.core.errors import InfraError
from pipeline.core.schema import ERROR, INPUT_HASH
from pipeline.planning.carried import Carried
from pipeline.process.failpoints import failpoint
from pipeline.storage.store import Store

log = logging.getLogger(__name__)

BUCKET_ROWS = 4_000_000
"""Most rows of a bucket, about: its file then has 70 MB, and to sort it takes 300 MB."""
CHUNK_ROWS = 2**21
_WHOLE_BYTES = 256 * 1024
"""A slice of fewer is read whole: a request more costs more than what is read for nothing."""
_READ_FILES = 64
_NONE = np.zeros(0, np.int64)
_LAID_BYTES = HASH_BYTES + 4
"""Per row: its hash, and its rank in the chunk."""


@dataclass(frozen=True)
class _Runs:
    """The carried runs of a version, K of them in output order."""

    computed: Numbers
    """int64 (K,): computed predictions before each."""
    before: Numbers
    """int64 (K + 1,): carried predictions before each, and all."""
    firsts: Numbers
    """int64 (K,): number of the first prediction, counted over all sources one after the other."""

    def to_ordinals(self, ranks: Numbers) -> Numbers:
        """Return the ordinals of computed predictions, int64 (N,), by their ranks among those."""
        return ranks + self.before[np.searchsorted(self.computed, ranks, "right")]

    def carried(self, high: Numbers, low: Numbers, numbers: Numbers) -> Bucket:
        """Return those of N hashes that are carried, by the numbers of their predictions."""
        order = np.argsort(numbers)
        starts = np.searchsorted(numbers, self.firsts, sorter=order)
        ends = np.searchsorted(numbers, self.firsts + np.diff(self.before), sorter=order)
        counts = ends - starts
        taken = order[np.repeat(starts, counts) + steps(counts)]
        moved = self.computed + self.before[:-1] - self.firsts
        return Bucket(high[taken], low[taken], numbers[taken] + np.repeat(moved, counts))


@dataclass(frozen=True)
class _Laid:
    """What became of a chunk."""

    path: str
    counts: tuple[int, ...]
    """Hashes of each bucket; they lie in the file one bucket after the other."""
    num_good: int
    good_before: Numbers
    """int64: predictions of the chunk before each of its runs."""


@dataclass(frozen=True)
class KeyWriter:
    """Everything needed to write any bucket of a version; plain enough for Ray."""

    store: Store
    folder: str
    """Of the keys."""
    spill_folder: str
    part_rows: tuple[int, ...]
    duplicates: DuplicateRows
    sources: tuple[VersionKeys, ...] = ()
    """Of the versions that rows are carried from; those of kind `inputs` have no hashes."""
    num_buckets: int = field(init=False)

    def __post_init__(self) -> None:
        full = max(1.0, sum(self.part_rows) / BUCKET_ROWS)
        object.__setattr__(self, "num_buckets", 1 << math.ceil(math.log2(full)))

    def lay_down(self, index: int, slices: tuple[SizedSlice, ...], runs_at: Numbers) -> _Laid:
        """Read the hashes of a chunk and put them down by bucket.

        Args:
            index: Of the chunk.
            slices: In order.
            runs_at: int64: before which row of the chunk its runs come.
        """
        rows, good = self._read(slices)
        of = buckets_of(rows.high, self.num_buckets)
        rows = rows.take(np.argsort(of, kind="stable"))
        counts = np.bincount(of, minlength=self.num_buckets).tolist()
        bounds = np.cumsum([0, *counts])
        pieces = [
            column[low:high].tobytes()
            for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
            for column in (rows.high, rows.low, rows.ordinals.astype(np.uint32))
        ]
        path = f"{self.spill_folder}/{index:06d}.hashes"
        self.store.put(path, b"".join(pieces))
        failpoint("keys_laid")
        return _Laid(path, tuple(counts), int(good[-1]), good[runs_at])

    def merge(self, bucket: int, laid: tuple[_Laid, ...], runs: _Runs) -> KeyFile:
        """Write one bucket."""
        found, first = [], 0
        for chunk in laid:
            piece = self._read_piece(chunk, bucket)
            ordinals = runs.to_ordinals(piece.ordinals + first)
            found.append(Bucket(piece.high, piece.low, ordinals))
            first += chunk.num_good
        return self._write(bucket, found, runs)

    def write_only(
        self, slices: tuple[SizedSlice, ...], runs_at: Numbers, taken: Ranges
    ) -> KeyFile:
        """Write the only bucket; arguments as of `lay_down`, with what all the runs take."""
        rows, good = self._read(slices)
        runs = _make_runs(good[runs_at], taken)
        self.require_all(int(good[-1]), runs)
        computed = Bucket(rows.high, rows.low, runs.to_ordinals(rows.ordinals))
        return self._write(0, [computed], runs)

    def _write(self, bucket: int, computed: list[Bucket], runs: _Runs) -> KeyFile:
        some = [*computed, *self._carried(bucket, runs)]
        written = write_bucket(self.store, self.folder, bucket, Bucket.joined(some), self.part_rows)
        failpoint("keys_bucket")
        return written

    def _carried(self, bucket: int, runs: _Runs) -> Iterator[Bucket]:
        """Yield the hashes of carried rows; those of a damaged file are left out."""
        ends = np.cumsum([keys.num_rows for keys in self.sources])
        for source in np.unique(np.searchsorted(ends, runs.firsts, "right")).tolist():
            keys = self.sources[source]
            for theirs in _overlapping(bucket, self.num_buckets, keys.num_buckets):
                try:
                    rows = read_bucket(keys, theirs)
                except NoKeys as error:
                    log.warning("%s: rows that are carried from there get no keys", error)
                    continue
                if keys.num_buckets < self.num_buckets:
                    rows = rows.take(buckets_of(rows.high, self.num_buckets) == bucket)
                numbers = rows.ordinals + int(ends[source] - keys.num_rows)
                yield runs.carried(rows.high, rows.low, numbers)

    def _read(self, slices: Sequence[SizedSlice]) -> tuple[Bucket, Numbers]:
        """Return the hashes of predicted rows with their ranks, and the predictions before each
        row of the slices and after the last one."""
        hashes, is_keyed, is_good = [np.zeros((0, HASH_BYTES), np.uint8)], [], []
        for (key, _, _), rows in zip(slices, _read_rows(self.store, slices), strict=True):
            good = np.array(rows.column(ERROR).is_null())
            good[list(self.duplicates.get(key, ()))] = False
            is_good.append(good)
            if INPUT_HASH not in rows.column_names:  # staged by a run without `reuse: content`
                is_keyed.append(np.zeros(len(good), bool))
                continue
            column = as_array(rows.column(INPUT_HASH))
            is_keyed.append(good & np.asarray(column.is_valid()))
            hashes.append(_bytes_of(column)[is_keyed[-1]])
        good_before = np.cumsum(np.concatenate([np.zeros(1, bool), *is_good]), dtype=np.int64)
        ranks = good_before[:-1][np.concatenate([np.zeros(0, bool), *is_keyed])]
        return Bucket(*halves(np.concatenate(hashes)), ranks), good_before

    def _read_piece(self, chunk: _Laid, bucket: int) -> Bucket:
        count = chunk.counts[bucket]
        with self.store.open(chunk.path) as file:
            file.seek(sum(chunk.counts[:bucket]) * _LAID_BYTES)
            data = file.read(count * _LAID_BYTES)
        half = HASH_BYTES // 2 * count
        words = np.frombuffer(data[: 2 * half], np.int64)
        ranks = np.frombuffer(data[2 * half :], np.uint32)
        return Bucket(words[:count], words[count:], ranks.astype(np.int64))

    def require_all(self, num_computed: int, runs: _Runs) -> None:
        """Make sure that the rows are those of the parts.

        Raises:
            InfraError: They are not.
        """
        found, written = num_computed + int(runs.before[-1]), sum(self.part_rows)
        if found != written:
            raise InfraError(
                f"{self.store.url(self.folder)}: {found} predictions are staged or carried, but "
                f"{written} were written; nothing was published"
            )


def write_buckets(
    writer: KeyWriter,
    slices: Sequence[SizedSlice],
    runs: Numbers,
    run_tasks: RunTasks,
    *,
    gone: Numbers = _NONE,
) -> dict[str, KeyFile]:
    """Write the hashes of all rows of a version.

    Args:
        slices: The staged slices of the work plan, in order. Rows whose `schema.INPUT_HASH` is null
            have no key, and slices without that column none at all.
        runs: int64 (K, 5): what is carried between them, as `Carried` has it.
        run_tasks: Calls a function for every tuple of arguments; results in the order of calls.
        gone: int64 (G,): numbers of carried predictions that go into the quarantine instead,
            counted over all sources one after the other.

    Raises:
        InfraError: The rows are not those of the parts.
    """
    placed = put_in_order(slices, Carried((), runs, np.zeros((0, 4), np.int64)), writer.sources)
    taken = placed.runs.cut(placed.runs.firsts, np.append(gone, gone + 1))
    taken = taken.take(~np.isin(taken.firsts, gone))
    at = placed.order.work_before(taken.ranks)
    if writer.num_buckets == 1:
        [written] = run_tasks(writer.write_only, [(tuple(slices), at, taken)])
        return {bucket_name(0): written}
    calls, first = [], 0
    chunks = list(_chunks(slices))
    for index, chunk in enumerate(chunks):
        until = first + sum(key.num_rows for key, _, _ in chunk)
        is_here = (at >= first) & ((at < until) | (index == len(chunks) - 1))
        calls.append((index, chunk, at[is_here] - first))
        first = until
    laid: list[_Laid] = run_tasks(writer.lay_down, calls)
    firsts = np.cumsum([0, *(chunk.num_good for chunk in laid)])
    before = [chunk.good_before + first for chunk, first in zip(laid, firsts, strict=False)]
    all_runs = _make_runs(np.concatenate(before), taken)
    writer.require_all(int(firsts[-1]), all_runs)
    merged = run_tasks(
        writer.merge, [(bucket, tuple(laid), all_runs) for bucket in range(writer.num_buckets)]
    )
    return {bucket_name(bucket): written for bucket, written in enumerate(merged)}


def _make_runs(computed: Numbers, taken: Ranges) -> _Runs:
    """Return runs with the computed predictions before each, int64 (K,)."""
    return _Runs(computed, np.append(0, np.cumsum(taken.counts)), taken.firsts)


def _chunks(slices: Sequence[SizedSlice]) -> Iterator[tuple[SizedSlice, ...]]:
    """Yield slices of about `CHUNK_ROWS` rows; at least one chunk."""
    chunk: list[SizedSlice] = []
    rows = 0
    for sized in slices:
        if rows >= CHUNK_ROWS:
            yield tuple(chunk)
            chunk, rows = [], 0
        chunk.append(sized)
        rows += sized[0].num_rows
    yield tuple(chunk)


def _overlapping(bucket: int, num_buckets: int, theirs: int) -> range:
    """Return which of `theirs` buckets hold the hashes of one of ours."""
    if not theirs:
        return range(0)
    if theirs < num_buckets:
        own = bucket // (num_buckets // theirs)
        return range(own, own + 1)
    each = theirs // num_buckets
    return range(bucket * each, (bucket + 1) * each)


def _read_rows(store: Store, slices: Sequence[SizedSlice]) -> Iterator[pa.Table]:
    """Yield the hashes and errors of the rows of each slice, in order."""
    names = [ERROR, INPUT_HASH]
    for start in range(0, len(slices), _READ_FILES):
        some = slices[start : start + _READ_FILES]
        found = store.read_many([path for _, path, size in some if size <= _WHOLE_BYTES])
        for _, path, _ in some:
            data = found.pop(path, None)
            if isinstance(data, Exception):
                raise data
            if data is None:
                yield read_columns(store, path, names)
            else:
                yield pq.ParquetFile(pa.BufferReader(data)).read(columns=names)


def _bytes_of(column: pa.Array) -> npt.NDArray[np.uint8]:
    """View a fixed-size binary column as uint8 (N, 16); what null rows have is undefined."""
    data = np.frombuffer(column.buffers()[1] or b"", np.uint8).reshape(-1, HASH_BYTES)
    return data[column.offset : column.offset + len(column)]
