"""What reads, preprocesses, predicts and writes the slices of a run, whatever executes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from pipeline.execution.isolation.guarded_reader import read_guarded
from pipeline.execution.predictor_actor import ActorConfig
from pipeline.execution.stages import Stage
from pipeline.execution.tasks import attempts_of
from pipeline.execution.visible_gpus import no_gpus
from pipeline.reuse.dividing import Known
from pipeline.reuse.filling import Filler
from pipeline.sources.rows import Reader
from pipeline.sources.units import Unit


class UnitRead(NamedTuple):
    """What is read of a unit; plain enough for Ray."""

    unit: Unit
    starts: frozenset[int]
    """First rows of its wanted slices; empty if only reading counts its rows."""
    known: Known | None
    """Sets rows aside that need no model; None: all are computed."""


class StreamParts(NamedTuple):
    """The stages in order; each takes a block of packed slices and returns one."""

    units: Sequence[UnitRead]
    read: Callable[[UnitRead], Iterable[pa.Table]]
    """Yields a packed row per slice."""
    preprocess: Stage | None
    """In actors of its own; None: those of the model preprocess, or there is nothing to do."""
    actor: ActorConfig
    """Of the PredictorActors."""
    write: Stage | None
    """In actors of its own; None: those of the model write."""


def unit_reads(units: Mapping[Unit, Sequence[int]], known: Known | None) -> list[UnitRead]:
    """Return what is read: the slices that have no staged part yet, and only those.

    Args:
        units: Each with the first rows of its wanted slices, if known.
        known: Sets rows aside that need no model; None: all are computed.
    """
    return [
        UnitRead(unit, frozenset(starts), known and known.of_unit(unit.index))
        for unit, starts in units.items()
    ]


def read_unit(
    reader: Reader, run_id: str, row_timeout_s: float, wanted: UnitRead
) -> Iterator[pa.Table]:
    """Yield the wanted slices of a unit, packed.

    Args:
        row_timeout_s: How long the reading of a row may take.
    """

    def read(some: Unit, starts: frozenset[int]) -> Iterable[pa.Table]:
        return read_guarded(reader, some, starts, attempts_of(run_id), row_timeout_s)

    with no_gpus():
        if wanted.known is None:
            yield from read(wanted.unit, wanted.starts)
        else:
            yield from Filler(wanted.known).slices(reader, wanted.unit, wanted.starts, read)
