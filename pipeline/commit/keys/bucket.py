"""A bucket: hashes of rows that begin with the same bits, sorted, and which prediction each has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commit.keys.meta import KeyFile, VersionKeys, bucket_name, put_file
from pipeline.commit.keys.shards import encode, to_ordinals, to_places
from pipeline.core.arrays import Numbers
from pipeline.storage.store import Store

HASH_BYTES = 16
_SCHEMA = pa.schema(
    [
        pa.field("k1", pa.int64(), nullable=False),
        pa.field("k2", pa.int64(), nullable=False),
        pa.field("part", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
    ]
)
_ENCODING = {"k1": "DELTA_BINARY_PACKED", "k2": "PLAIN", "part": "DELTA_BINARY_PACKED",
             "row": "DELTA_BINARY_PACKED"}  # fmt: skip


@dataclass(frozen=True)
class Bucket:
    """N hashes; each array is int64 (N,)."""

    high: Numbers
    """First halves; ascending once they are sorted."""
    low: Numbers
    ordinals: Numbers

    def take(self, selection: npt.NDArray[np.bool_] | Numbers) -> Bucket:
        """Return some of them: by a mask (N,), or by their indices."""
        return Bucket(self.high[selection], self.low[selection], self.ordinals[selection])

    @classmethod
    def joined(cls, some: Sequence[Bucket]) -> Bucket:
        """Return the hashes of several, one after the other; of none if there are none."""
        none = Bucket(*(np.zeros(0, np.int64),) * 3)
        parts = ((each.high, each.low, each.ordinals) for each in (none, *some))
        return cls(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def halves(hashes: npt.NDArray[np.uint8]) -> tuple[Numbers, Numbers]:
    """Return the halves of hashes, uint8 (N, 16), as two int64 (N,)."""
    words = np.ascontiguousarray(hashes).view(">i8").astype(np.int64)
    return np.ascontiguousarray(words[:, 0]), np.ascontiguousarray(words[:, 1])


def buckets_of(high: Numbers, num_buckets: int) -> npt.NDArray[np.uint16]:
    """Return the bucket of each hash, (N,): its first bits.

    Args:
        high: int64 (N,): the first halves.
        num_buckets: A power of two, at most 65,536.
    """
    if num_buckets == 1:
        return np.zeros(len(high), np.uint16)
    shift = np.uint64(64 - (num_buckets.bit_length() - 1))
    return (high.view(np.uint64) >> shift).astype(np.uint16)


def write_bucket(
    store: Store, folder: str, number: int, rows: Bucket, part_rows: tuple[int, ...]
) -> KeyFile:
    """Sort the rows of a bucket and write its file."""
    rows = rows.take(np.argsort(rows.high))
    parts, places = to_places(rows.ordinals, part_rows)
    table = pa.table([rows.high, rows.low, parts, places], schema=_SCHEMA)
    data = encode(table, _ENCODING)
    return put_file(store, folder, bucket_name(number), data, table.num_rows)


def read_bucket(keys: VersionKeys, number: int) -> Bucket:
    """Read a bucket of a version.

    Raises:
        NoKeys: Its file is missing or damaged.
        PipelineError: The store failed.
    """
    name = bucket_name(number)
    # The digest says that these are the bytes that were written, so they can be decoded.
    table = pq.ParquetFile(pa.BufferReader(keys.read(name))).read().combine_chunks()
    high, low = (np.asarray(table.column(half)) for half in ("k1", "k2"))
    ordinals = to_ordinals(table.column("part"), table.column("row"), keys)
    of_others = buckets_of(high, keys.num_buckets) != number
    if ordinals is None or of_others.any() or (high[1:] < high[:-1]).any():
        raise keys.damaged(name)
    return Bucket(high, low, ordinals)
