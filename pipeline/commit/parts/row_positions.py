"""Positions of rows in the input: kept with the quarantine, so that a retry can merge rows there.

The metadata of a part of the quarantine hold four numbers per row, see `Positions`. Predictions
need none: their order says where they are, as long as the quarantine says what is missing. Only
if partition columns have sorted them by value, their parts hold their keys.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import Numbers
from pipeline.core.errors import InfraError

_MINOR_BITS = 28
MAX_MINOR = 1 << _MINOR_BITS
"""Most rows that may replace the one that stood for a whole shard."""
METADATA = "pipeline.places"
_COLUMNS = METADATA + ".columns"


@dataclass(frozen=True)
class Positions:
    """Positions of N rows, ascending by key; each array is int64 (N,)."""

    keys: Numbers
    """They order all rows of the input; the key of a row is the same in all versions."""
    units: Numbers
    """Indices of the units in the plan."""
    rows: Numbers
    """Numbers of the rows in their units."""
    ranks: Numbers
    """How many rows of this version come before."""

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, selection: npt.NDArray[np.bool_] | Numbers | slice) -> Positions:
        """Return the positions of some rows: a mask (N,), their indices, or a slice."""
        return Positions(
            self.keys[selection], self.units[selection], self.rows[selection], self.ranks[selection]
        )

    def to_matrix(self) -> Numbers:
        """Return int64 (N, 4), as the metadata of parts hold it: key, unit, row, rank."""
        return np.stack([self.keys, self.units, self.rows, self.ranks], axis=1)

    @classmethod
    def from_matrix(cls, matrix: Numbers) -> Positions:
        """Undo `to_matrix`: int64 (N, 4)."""
        return cls(*np.ascontiguousarray(matrix.T))

    @classmethod
    def joined(cls, some: Iterable[Positions]) -> Positions:
        """Return the positions of all rows, one group after the other; of none if empty."""
        none = np.zeros(0, np.int64)
        columns = zip((none,) * 4, *((p.keys, p.units, p.rows, p.ranks) for p in some), strict=True)
        return cls(*(np.concatenate(arrays) for arrays in columns))


def make_positions(first: int, unit: int, start: int, num_rows: int) -> Positions:
    """Return the positions of consecutive rows of a unit.

    Args:
        first: How many rows come before.
        unit: The unit's index.
        start: The first row in the unit.
        num_rows: How many rows.
    """
    steps = np.arange(num_rows, dtype=np.int64)
    units = np.full(num_rows, unit, np.int64)
    return Positions(major_keys(first + steps), units, start + steps, first + steps)


def major_keys(ranks: Numbers) -> Numbers:
    """Return the keys, int64 (N,), of rows that a plan counts, by the rows before each."""
    return ranks << _MINOR_BITS


def ordinal_within_entry(keys: Numbers) -> Numbers:
    """Return, int64 (N,), how many rows before each came in for the same row of a plan."""
    return keys & (MAX_MINOR - 1)


def to_metadata(numbers: Numbers) -> dict[str, str]:
    """Return int64 (N, C), mostly ascending in N, as metadata of a Parquet file."""
    steps = np.diff(numbers, axis=0, prepend=np.zeros((1, numbers.shape[1]), np.int64))
    # Byte by byte of all numbers: the upper ones are nearly all zero, and so take no room.
    planes = np.ascontiguousarray(steps.T).astype("<i8").view(np.uint8).reshape(-1, 8).T
    packed = zlib.compress(planes.tobytes())
    return {METADATA: base64.b64encode(packed).decode(), _COLUMNS: str(numbers.shape[1])}


def from_metadata(metadata: Mapping[bytes, bytes] | None, num_rows: int, path: str) -> Numbers:
    """Undo `to_metadata`: return int64 (N, C).

    Raises:
        InfraError: It is damaged, or there is nothing.
    """
    found = metadata or {}
    try:
        packed, columns = found[METADATA.encode()], found[_COLUMNS.encode()]
        planes = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)
        flat = np.ascontiguousarray(planes.reshape(8, -1).T).view("<i8")
        steps = flat.reshape(int(columns), num_rows).T
    except (KeyError, ValueError, zlib.error) as error:
        raise InfraError(f"{path}: the places of its rows are damaged: {error}") from None
    return np.cumsum(steps, axis=0, dtype=np.int64)


def read_positions(metadata: Mapping[bytes, bytes] | None, num_rows: int, path: str) -> Positions:
    """Read the positions of the rows of a part of the quarantine; errors: see `from_metadata`."""
    return Positions.from_matrix(from_metadata(metadata, num_rows, path))


def read_keys(metadata: Mapping[bytes, bytes] | None, num_rows: int, path: str) -> Numbers:
    """Read the keys, int64 (N,), of the rows of a part; errors: see `from_metadata`."""
    return from_metadata(metadata, num_rows, path)[:, 0]
