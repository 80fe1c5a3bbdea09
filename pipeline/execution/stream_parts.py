"""What reads, preprocesses, predicts and writes the slices of a run, whatever executes it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from pipeline.execution.isolation.guarded_reader import read_guarded
from pipeline.execution.predictor_actor import ActorConfig
from pipeline.execution.stages import Stage
from pipeline.execution.tasks import attempts_of
from pipeline.execution.visible_gpus import no_gpus
from pipeline.reuse.filling import Filler
from pipeline.reuse.known import Known
from pipeline.sources.rows import Reader
from pipeline.sources.units import Unit


class UnitRead(NamedTuple):
    """How the wanted slices of a unit are read; plain enough for Ray."""

    num_slices: int | None
    """None: unknown before it is read."""
    read: Callable[[], Iterable[pa.Table]]
    """Yields a packed row a slice."""


class StreamParts(NamedTuple):
    """The stages in order; each takes a block of packed slices and returns one."""

    reads: Sequence[UnitRead]
    preprocess: Stage | None
    """In tasks of its own; None: actors preprocess, or there is nothing to preprocess."""
    actor: ActorConfig
    """Of the PredictorActors."""
    write: Stage | None
    """In tasks of its own; None: actors write."""


def unit_reads(
    reader: Reader,
    units: Mapping[Unit, Sequence[int]],
    run_id: str,
    row_timeout_s: float,
    known: Known | None = None,
) -> list[UnitRead]:
    """Return how to read the slices that have no staged part yet, and only those.

    Args:
        units: Each with the first rows of its wanted slices, if known.
        row_timeout_s: How long the reading of a row may take.
        known: Sets rows aside that need no model; None: all are computed.
    """
    read = functools.partial(_read, reader, run_id, row_timeout_s)
    return [
        UnitRead(
            len(starts) or None,
            functools.partial(read, unit, frozenset(starts), known and known.of_unit(unit.index)),
        )
        for unit, starts in units.items()
    ]


def _read(
    reader: Reader,
    run_id: str,
    row_timeout_s: float,
    unit: Unit,
    starts: frozenset[int],
    known: Known | None,
) -> Iterable[pa.Table]:
    def read(some: Unit, wanted: frozenset[int]) -> Iterable[pa.Table]:
        return read_guarded(reader, some, wanted, attempts_of(run_id), row_timeout_s)

    with no_gpus():
        if known is None:
            yield from read(unit, starts)
        else:
            yield from Filler(known).slices(reader, unit, starts, read)
