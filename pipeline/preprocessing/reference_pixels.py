"""Rows and pixels of the reference check: rows that an actor predicts again with eager fp32.

If the decoder is approximate, the reference must not see its pixels: the check would miss its
error. So some rows carry exactly decoded pixels, in a column of their own, from the decoder to the
model: the first rows of an actor's first slice, or, if tasks decode, of the run's first slices.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.arrays import as_array
from pipeline.core.counters import REFERENCE_CHECK, Counters, StageCounters, add
from pipeline.core.schema import ERROR, EXACT, IMAGE
from pipeline.preprocessing.model_input import Arrays, Input, take_rows

NUM_REFERENCE_ROWS = 16


def with_reference_pixels(
    rows: pa.Table, counters: Counters, decode: Callable[[pa.Table], pa.Table]
) -> pa.Table:
    """Add the exactly decoded pixels of the first NUM_REFERENCE_ROWS rows that have not failed.

    Args:
        rows: A slice with encoded images.
        counters: Gets the busy seconds, as part of the reference check.
        decode: Decodes and transforms a slice exactly.

    Returns:
        The same rows with the column EXACT: fixed-size binary, uint8 (H, W, C), null for other
        rows and those that fail to decode. Without it if all rows have failed.
    """
    started = perf_counter()
    chosen = np.flatnonzero(rows.column(ERROR).is_null().to_numpy())[:NUM_REFERENCE_ROWS]
    if not len(chosen):
        return rows
    decoded = decode(rows.take(pa.array(chosen)))
    pixels = as_array(decoded.column(IMAGE))
    are_good = decoded.column(ERROR).is_null().to_pylist()
    places: list[int | None] = [None] * rows.num_rows
    for index, row in enumerate(chosen):
        places[row] = index if are_good[index] else None
    exact = pixels.take(pa.array(places, pa.int64()))
    add(counters, REFERENCE_CHECK, StageCounters(busy_s=perf_counter() - started))
    return rows.append_column(EXACT, exact)


def choose_reference_rows(
    rows: pa.Table, seen: Input, inputs: Arrays, ok: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.intp], Arrays]:
    """Choose the rows of the reference check, and what the reference sees of them.

    Args:
        rows: The slice of N rows, with the column EXACT or without.
        seen: The input; if it is approximate, `inputs` cannot be the reference.
        inputs: What the model saw of the slice, each (N, ...).
        ok: The rows that were predicted, ascending.

    Returns:
        At most NUM_REFERENCE_ROWS rows, (K,), and their inputs, each (K, ...); K = 0 if the
        slice lacks the exact pixels that its input needs.
    """
    if EXACT not in rows.column_names:
        chosen = ok[: 0 if seen.is_approximate else NUM_REFERENCE_ROWS]
        return chosen, take_rows(inputs, chosen)
    exact = rows.column(EXACT)
    chosen = ok[exact.is_valid().to_numpy()[ok]]
    return chosen, seen.arrays(pa.table({IMAGE: exact.take(pa.array(chosen))}))
