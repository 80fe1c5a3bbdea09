"""Sample rows of a job at random, spread over its input."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.core.schema import ERROR
from pipeline.planning.plan import Plan
from pipeline.sources.reader import read_slices
from pipeline.sources.rows import Reader
from pipeline.sources.units import Unit, only_rows

_MAX_UNITS = 16


def sample_units(plan: Plan, num_rows: int) -> tuple[list[Unit], int]:
    """Choose units to sample `num_rows` rows from, and a seed; the same for a plan and a number."""
    seed = int(plan.fingerprint[:12], 16) + num_rows
    chosen = random.Random(seed).sample(plan.units, min(_MAX_UNITS, len(plan.units)))  # noqa: S311  # hides nothing
    return chosen, seed


def sample_rows(reader: Reader, units: Sequence[Unit], num_rows: int, seed: int) -> pa.Table:
    """Read random readable rows of the first slice of each unit, in `source_schema`."""
    random = np.random.default_rng(seed)
    share = -(-num_rows // len(units))
    pieces = []
    for unit in units:
        if unit.cut is None:
            numbers = _choose(random, unit.bounds[1], share)
            _, _, rows = next(iter(read_slices(reader, only_rows(unit, numbers), frozenset([0]))))
        else:
            _, _, rows = next(iter(read_slices(reader, unit, frozenset([0]))))
            rows = rows.take(_choose(random, rows.num_rows, share))
        pieces.append(rows.filter(rows.column(ERROR).is_null()))
    return pa.concat_tables(pieces)[:num_rows].combine_chunks()


def _choose(random: np.random.Generator, num_rows: int, share: int) -> list[int]:
    chosen: list[int] = sorted(random.permutation(num_rows)[:share].tolist())
    return chosen
