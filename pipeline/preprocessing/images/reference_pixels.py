"""Rows and exact pixels of the reference check, which predicts rows again with eager fp32.

If the decoder is approximate, the reference must not use its pixels, or the check would miss the
decoder's error. So some rows carry exactly decoded pixels in a column of their own: the first rows
of an actor's first slice or, if tasks decode, of the run's first slices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.arrays import as_array
from pipeline.core.figures import Comparison, Counters, SliceFigures
from pipeline.core.schema import ERROR, EXACT, IMAGE
from pipeline.preprocessing.model_input import Input, Inputs, take_rows

NUM_REFERENCE_ROWS = 16


def pixel_columns(seen: Input) -> list[str]:
    """Return the columns of prepared rows that hold pixels."""
    return [
        field.name
        for field in seen.fields()
        if pa.types.is_fixed_size_binary(field.type) or pa.types.is_large_binary(field.type)
    ]


def _exact_column(name: str) -> str:
    return EXACT if name == IMAGE else f"_exact{name}"


def with_reference_pixels(
    rows: pa.Table,
    counters: Counters,
    decode: Callable[[pa.Table], pa.Table],
    names: Sequence[str] = (IMAGE,),
) -> pa.Table:
    """Add the exactly decoded pixels of the first NUM_REFERENCE_ROWS rows that have not failed.

    Args:
        rows: A slice with encoded images.
        counters: Gets the busy seconds, as part of the reference check.
        decode: Decodes and transforms a slice exactly.
        names: The columns with pixels of prepared rows.

    Returns:
        The same rows with a further column for each name, EXACT for a single image: uint8
        (H, W, C), null for other rows and those that cannot be decoded. No column if all rows have
        failed.
    """
    started = perf_counter()
    chosen = np.flatnonzero(rows.column(ERROR).is_null().to_numpy())[:NUM_REFERENCE_ROWS]
    if not len(chosen):
        return rows
    decoded = decode(rows.take(pa.array(chosen)))
    are_good = decoded.column(ERROR).is_null().to_pylist()
    places: list[int | None] = [None] * rows.num_rows
    for index, row in enumerate(chosen):
        places[row] = index if are_good[index] else None
    for name in names:
        exact = as_array(decoded.column(name)).take(pa.array(places, pa.int64()))
        rows = rows.append_column(_exact_column(name), exact)
    checked = Comparison(busy_s=perf_counter() - started)
    SliceFigures(reference_check=checked).add_to(counters)
    return rows


def choose_reference_rows(
    rows: pa.Table, seen: Input, inputs: Inputs, ok: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.intp], Inputs]:
    """Choose the rows of the reference check, and the reference's inputs of them.

    Args:
        rows: The slice of N rows, with or without columns of exact pixels.
        seen: The input; if it is approximate, `inputs` cannot be the reference.
        inputs: The model's inputs of the slice, each (N, ...).
        ok: The rows that were predicted, ascending.

    Returns:
        At most NUM_REFERENCE_ROWS rows, (K,), and their inputs, each (K, ...); K = 0 if the
        slice lacks exact pixels that the input needs.
    """
    exact = {name: _exact_column(name) for name in pixel_columns(seen)}
    exact = {name: column for name, column in exact.items() if column in rows.column_names}
    if not exact:
        chosen = ok[: 0 if seen.is_approximate else NUM_REFERENCE_ROWS]
        return chosen, take_rows(inputs, chosen)
    are_there = [rows.column(column).is_valid().to_numpy() for column in exact.values()]
    chosen = ok[np.logical_and.reduce(are_there)[ok]]
    some = rows.take(pa.array(chosen))
    for name, column in exact.items():
        some = some.set_column(some.schema.get_field_index(name), name, some.column(column))
    return chosen, seen.arrays(some)
