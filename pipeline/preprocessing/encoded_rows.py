"""Rows of encoded bytes, images or clips of sound: decoded and made model input, row by row.

No decoded row outlives its own turn, and a bad row does not change the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue
from time import perf_counter
from typing import Any

import pyarrow as pa

from pipeline.core.failures import Failure, RowError, failures_of
from pipeline.core.figures.counters import Counters, StageCounters, add
from pipeline.process.liveness import still_alive

STAGES = ("decode", "transform")
Step = Callable[[int, Any], tuple[Any, int]]
"""Of a row's number and value: what becomes of it, and the bytes of that; or a `RowError`."""


def prepare_rows(
    rows: pa.Table, column: str, decode: Step, transforms: Sequence[Step], counters: Counters
) -> list[Failure | None]:
    """Decode and transform the rows without an error; return the failures of all rows.

    Args:
        column: Holds the encoded bytes.
        transforms: One for each row that is worked on at once, used by one thread at a time; they
            keep what they make.
        counters: Gets the entries of `STAGES`.
    """
    failures, encoded = failures_of(rows), rows.column(column)
    todo = [row for row, failure in enumerate(failures) if failure is None]
    free = SimpleQueue[Step]()
    for transform in transforms:
        free.put(transform)

    def work(row: int) -> list[StageCounters]:
        transform = free.get()
        try:
            data: bytes = encoded[row].as_py()
            found = _done(row, data, (decode, transform))
        finally:
            free.put(transform)
        failures[row], counted = found
        return counted

    total, started = [StageCounters() for _ in STAGES], perf_counter()
    with ThreadPoolExecutor(len(transforms)) as pool:
        for counted in (map if len(transforms) == 1 else pool.map)(work, todo):
            still_alive()
            for index, stage in enumerate(counted):
                total[index] += stage
    wall_s = perf_counter() - started
    worked_s = sum(stage.busy_s for stage in total)
    # Busy seconds are those of the slot, however many threads it has.
    scale = min(1.0, wall_s / worked_s) if worked_s else 1.0
    for name, stage in zip(STAGES, total, strict=True):
        add(counters, name, replace(stage, busy_s=stage.busy_s * scale))
    return failures


def _done(
    row: int, data: bytes, steps: Sequence[Step]
) -> tuple[Failure | None, list[StageCounters]]:
    """Return why a row has failed, or None, and what each of the stages did that it reached."""
    value: Any = data
    size_bytes, counted = len(data), list[StageCounters]()
    for name, step in zip(STAGES, steps, strict=True):
        given_bytes, started = size_bytes, perf_counter()
        try:
            value, size_bytes = step(row, value)
        except RowError as error:
            counted.append(StageCounters(1, 0, 1, given_bytes, 0, perf_counter() - started))
            digest = hashlib.sha256(data).hexdigest()
            return Failure(error.reason, name, error.message, digest, len(data)), counted
        busy_s = perf_counter() - started
        counted.append(StageCounters(1, 1, 0, given_bytes, size_bytes, busy_s))
    return None, counted
