"""Batches of a sample that stand for those of a run: what a way to run a model is timed on.

Rows of one shape cost the same, so any batch will do. Of texts the cost lies in their tokens and in
the padding, and both depend on what a slice holds: a sample of so many rows is divided as a slice
is, and each of its batches stands for as many rows as it has tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.core.errors import JobError
from pipeline.preprocessing.model_input import Arrays, BatchLimits, Input, Rows, num_rows

SAMPLE_ROWS = 128
"""Rows of a sample, and of those that are compared with eager fp32."""
CALIBRATED_ROWS = 256
"""Most rows that an int8 model is calibrated by, of those that are sampled."""
MAX_SAMPLE_ROWS = 2048


@dataclass(frozen=True)
class Batches:
    """The batches that a way is tried with beside the usual one."""

    others: Sequence[BatchLimits] = ()
    node_actors: int = 1
    """How many actors share the memory of a node."""


NO_OTHERS = Batches()


class RunBatch(NamedTuple):
    """The rows of one model call."""

    rows: Rows
    """(B,): row numbers in the sample."""
    worth: float
    """Rows of a run that it stands for; by its tokens, if rows have any."""


def rows_to_sample(seen: Input, slice_rows: Sequence[int], least: int = SAMPLE_ROWS) -> int:
    """Return how many rows are sampled: of texts as many as the largest slice has.

    Args:
        seen: The job's input.
        slice_rows: Rows of the slices of a run, or of some of them.
        least: How many are to be compared.
    """
    if not seen.counts_tokens:
        return least
    return min(MAX_SAMPLE_ROWS, max([least, *slice_rows]))


def compared_rows(size: int, most: int = SAMPLE_ROWS) -> slice:
    """Return which of so many sampled rows are compared with eager fp32: some, evenly spread.

    Args:
        size: How many there are.
        most: How many are compared at most.
    """
    return slice(None, None, max(1, -(-size // most)))


def calibrated_rows(size: int) -> slice:
    """Return which of so many sampled rows an int8 model is calibrated by: every other one.

    Of many rows they are fewer, and hardly any of those that are compared.
    """
    first = 1 if size > SAMPLE_ROWS else 0
    return slice(first, None, max(2, -(-size // CALIBRATED_ROWS)))


def run_batches(seen: Input, inputs: Arrays, limits: BatchLimits) -> list[RunBatch]:
    """Divide a sample into batches like those of a run; texts so that the first few vary in length.

    Args:
        seen: The input.
        inputs: The arrays of the sample, each (N, ...).
        limits: How large a batch may be.

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
