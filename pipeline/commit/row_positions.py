"""Where rows lie in the input: kept beside the quarantine, so that rows can come in again there.

Of every quarantined row its part's metadata hold four numbers, see `KEY` to `RANK`. Predictions
need none: their order says where they are, as long as the quarantine says what is missing. Only
if partition columns have sorted them by value, their parts hold their keys.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping

import numpy as np

from pipeline.core.arrays import Numbers
from pipeline.core.errors import InfraError

KEY, UNIT, ROW, RANK = range(4)
"""Columns of places (N, 4): the key, which orders all rows and stays the same in all versions; the
unit of the plan and the row in it; and how many rows of this version come before."""
_MINOR_BITS = 28
MAX_MINOR = 1 << _MINOR_BITS
"""Rows that may come in for one that stood for a whole shard."""
METADATA = "pipeline.places"
_COLUMNS = METADATA + ".columns"


def make_places(first: int, unit: int, start: int, num_rows: int) -> Numbers:
    """Return the places of consecutive rows of a unit.

    Args:
        first: How many rows come before.
        unit: The unit's index.
        start: The first row in the unit.
        num_rows: How many rows.
    """
    steps = np.arange(num_rows, dtype=np.int64)
    columns = [keys_of(first + steps), np.full(num_rows, unit), start + steps, first + steps]
    return np.stack(columns, axis=1).astype(np.int64)


def keys_of(positions: Numbers) -> Numbers:
    """Return the keys of rows that a plan counts, by their positions in the input."""
    return positions << _MINOR_BITS


def minor_of(keys: Numbers) -> Numbers:
    """Return how many rows before each came in for the same row of a plan."""
    return keys & (MAX_MINOR - 1)


def to_metadata(places: Numbers) -> dict[str, str]:
    """Return numbers (N, C), mostly ascending in N, as metadata of a Parquet file."""
    steps = np.diff(places, axis=0, prepend=np.zeros((1, places.shape[1]), np.int64))
    # Byte by byte of all numbers: the upper ones are nearly all zero, and so take no room.
    planes = np.ascontiguousarray(steps.T).astype("<i8").view(np.uint8).reshape(-1, 8).T
    packed = zlib.compress(planes.tobytes())
    return {METADATA: base64.b64encode(packed).decode(), _COLUMNS: str(places.shape[1])}


def from_metadata(metadata: Mapping[bytes, bytes] | None, num_rows: int, path: str) -> Numbers:
    """Undo `to_metadata`.

    Raises:
        KeyError: There is nothing: an older version wrote the file.
        InfraError: It is damaged.
    """
    found = metadata or {}
    packed, columns = found[METADATA.encode()], found[_COLUMNS.encode()]
    try:
        planes = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)
        flat = np.ascontiguousarray(planes.reshape(8, -1).T).view("<i8")
        steps = flat.reshape(int(columns), num_rows).T
    except (ValueError, zlib.error) as error:
        raise InfraError(f"{path}: the places of its rows are damaged: {error}") from None
    return np.cumsum(steps, axis=0, dtype=np.int64)
