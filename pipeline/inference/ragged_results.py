"""Results of a slice whose rows differ in length: written batch by batch, padded with zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.preprocessing.model_input import Rows


def place(
    results: dict[str, npt.NDArray[Any]],
    name: str,
    size: int,
    batch: Rows,
    values: npt.NDArray[Any],
) -> None:
    """Write the values of a batch to their rows.

    Args:
        results: Name -> (N, ...); gets the entry, or a longer one, if a batch has more per row.
        name: Of the result.
        size: N, the rows of the slice.
        batch: (B,) row numbers in the slice.
        values: (B, ...), axis 1 perhaps of another size than in other batches.
    """
    held = results.get(name)
    if held is None:
        held = results[name] = np.zeros((size, *values.shape[1:]), values.dtype)
    if held.shape[1:] == values.shape[1:]:
        held[batch] = values
        return
    if values.shape[1] > held.shape[1]:
        longer = np.zeros((size, *values.shape[1:]), values.dtype)
        longer[:, : held.shape[1]] = held
        held = results[name] = longer
    held[batch, : values.shape[1]] = values
    held[batch, values.shape[1] :] = 0
