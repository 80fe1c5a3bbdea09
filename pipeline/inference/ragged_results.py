"""Results of a slice whose rows differ in length: written batch by batch, padded with zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[Any]


def place(
    results: dict[str, Values],
    name: str,
    size: int,
    batch: Values,
    values: Values,
    lengths: Values | None = None,
) -> None:
    """Write the values of a batch to their rows.

    Args:
        results: Name -> (N, ...); gets the entry, or a longer one, if a batch has more per row.
        name: Of the result.
        size: N, the rows of the slice.
        batch: (B,) row numbers in the slice.
        values: (B, ...), axis 1 perhaps of another size than in other batches.
        lengths: (B,): how many values along axis 1 are those of the row; what the model made of
            its padding becomes zero. None: all are.
    """
    held = results.get(name)
    if held is None:
        held = results[name] = np.zeros((size, *values.shape[1:]), values.dtype)
    if held.shape[1:] == values.shape[1:]:
        held[batch] = values
    else:
        width = values.shape[1]
        if width > held.shape[1]:
            longer = np.zeros((size, *values.shape[1:]), values.dtype)
            longer[:, : held.shape[1]] = held
            held = results[name] = longer
        held[batch, :width] = values
        held[batch, width:] = 0
    if lengths is not None:
        rows, places = np.nonzero(np.arange(held.shape[1]) >= lengths[:, None])
        held[batch[rows], places] = 0
