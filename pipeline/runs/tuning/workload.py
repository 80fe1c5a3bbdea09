"""The batches of a sample that stand for those of a run, on which ways to run a model are timed.

Rows of one shape cost the same, so any batch will do. Texts cost by their tokens and by padding,
which both depend on the rows of a slice: a sample of as many rows is divided like a slice, and each
of its batches counts by its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.core.errors import JobError
from pipeline.preprocessing.model_input import BatchLimits, Input, Inputs, Rows, num_rows

SAMPLE_ROWS = 128
"""Rows of a sample, and the most rows that are compared with eager fp32."""
CALIBRATED_ROWS = 256
"""The most sampled rows by which an int8 model is calibrated."""
MAX_SAMPLE_ROWS = 2048


@dataclass(frozen=True)
class Batches:
    """The batches with which a way is tried in addition to the usual one."""

    others: Sequence[BatchLimits] = ()
    node_actors: int = 1
    """The number of actors that share the memory of a node."""


NO_OTHERS = Batches()


class RunBatch(NamedTuple):
    """The rows of one model call."""

    rows: Rows
    """(B,): row numbers in the sample."""
    worth: float
    """The number of rows that it stands for; by its tokens, if rows have tokens."""


def rows_to_sample(seen: Input, slice_rows: Sequence[int], least: int = SAMPLE_ROWS) -> int:
    """Return the number of rows to sample: for texts the rows of the largest slice.

    Args:
        seen: The job's input.
        slice_rows: Rows of the slices of a run, or of some of them.
        least: The number of rows to compare.
    """
    if not seen.counts_tokens:
        return least
    return min(MAX_SAMPLE_ROWS, max([least, *slice_rows]))


def compared_rows(size: int, most: int = SAMPLE_ROWS) -> slice:
    """Return the sampled rows to compare with eager fp32, evenly spread.

    Args:
        size: Number of sampled rows.
        most: The most rows to compare.
    """
    return slice(None, None, max(1, -(-size // most)))


def calibrated_rows(size: int) -> slice:
    """Return the sampled rows by which an int8 model is calibrated: every other one.

    Of many rows they are fewer, and few of the compared ones are among them.
    """
    first = 1 if size > SAMPLE_ROWS else 0
    return slice(first, None, max(2, -(-size // CALIBRATED_ROWS)))


def run_batches(seen: Input, inputs: Inputs, limits: BatchLimits) -> list[RunBatch]:
    """Divide a sample into batches like those of a run; texts so that the first few vary in length.

    Args:
        seen: The input.
        inputs: The arrays of the sample, each (N, ...).
        limits: The largest batch.

    Raises:
        JobError: No text of the sample can be prepared.
    """
    size = num_rows(inputs)
    if not seen.counts_tokens:
        size = max(1, size)
        windows = range(0, size, limits.rows)
        return [RunBatch(np.arange(p, p + limits.rows) % size, limits.rows) for p in windows]
    if not size:
        raise JobError("none of the sampled texts can be turned into tokens")
    lengths = seen.lengths(inputs, np.arange(size))
    assert lengths is not None, "rows have tokens"
    mean = max(1.0, float(lengths.mean()))
    batches = seen.batches(inputs, np.arange(size), limits)
    weighted = [RunBatch(rows, max(1.0, float(lengths[rows].sum())) / mean) for rows in batches]
    return [weighted[index] for index in sorted(range(len(weighted)), key=_reversed_bits)]


def _reversed_bits(number: int) -> str:
    """Order numbers so that any first few are spread evenly (van der Corput, 1935)."""
    return f"{number:032b}"[::-1]
