"""The rows that an actor predicts once more with eager fp32, decoded exactly.

Where the decoder changes pixels, the comparison must not start from what it made: it would agree
with itself. So the first rows of an actor's first slice, or of the run's first slices where tasks
decode, carry their exact pixels, in a column of their own, from the decoder to the model.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.arrays import as_array
from pipeline.core.counters import CANARY, Counters, StageCounters, add
from pipeline.core.schema import ERROR, EXACT, IMAGE
from pipeline.preprocessing.model_input import Arrays, Input, take_rows

CANARY_ROWS = 16


def with_exact_pixels(
    rows: pa.Table, counters: Counters, decode: Callable[[pa.Table], pa.Table]
) -> pa.Table:
    """Add exact pixels of the first CANARY_ROWS rows that have not failed.

    Args:
        rows: A slice with encoded images.
        counters: Gets the time, as part of the comparison.
        decode: Decodes and transforms a slice exactly.

    Returns:
        The same rows with the column EXACT; without it where all have failed.
    """
    started = perf_counter()
    chosen = np.flatnonzero(rows.column(ERROR).is_null().to_numpy())[:CANARY_ROWS]
    if not len(chosen):
        return rows
    decoded = decode(rows.take(pa.array(chosen)))
    pixels = as_array(decoded.column(IMAGE))
    are_good = decoded.column(ERROR).is_null().to_pylist()
    places: list[int | None] = [None] * rows.num_rows
    for index, row in enumerate(chosen):
        places[row] = index if are_good[index] else None
    exact = pixels.take(pa.array(places, pa.int64()))
    add(counters, CANARY, StageCounters(busy_s=perf_counter() - started))
    return rows.append_column(EXACT, exact)


def canary(
    rows: pa.Table, seen: Input, inputs: Arrays, ok: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.intp], Arrays]:
    """Choose which predicted rows are compared, and what the reference sees of them.

    Args:
        rows: The slice, with exact pixels or without.
        seen: The input; where it is approximate, what the model saw tells nothing.
        inputs: What the model saw, each (N, ...).
        ok: The rows that were predicted.

    Returns:
        At most CANARY_ROWS rows, and their inputs; none of a slice that lacks what is needed.
    """
    if EXACT not in rows.column_names:
        chosen = ok[: 0 if seen.is_approximate else CANARY_ROWS]
        return chosen, take_rows(inputs, chosen)
    exact = rows.column(EXACT)
    chosen = ok[exact.is_valid().to_numpy()[ok]]
    return chosen, seen.arrays(pa.table({IMAGE: exact.take(pa.array(chosen))}))
