"""Stages other than the model's: unpack the slices of a block, call the stage, pack them again.

The driver builds the dataset without importing torch; workers import what they run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.commit.staging import StagingWriter
from pipeline.core.backoff import stop_retrying_at
from pipeline.core.figures import PREDICT, Counters
from pipeline.core.registry import INPUTS
from pipeline.core.slices import pack, unpack
from pipeline.core.user_code import extension_errors
from pipeline.execution.isolation.child_process import Step
from pipeline.execution.isolation.crash_guard import Guard, StagePlan
from pipeline.execution.tasks import crash_marks_of
from pipeline.inference.engines import open_engine
from pipeline.models.spec import PredictorConfig
from pipeline.preprocessing.images.reference_pixels import pixel_columns, with_reference_pixels
from pipeline.preprocessing.model_input import Input, Limits

if TYPE_CHECKING:
    from pipeline.job.source import Source

Stage = Callable[[pa.Table], pa.Table]
"""Takes a block of packed slices, returns a block of packed slices or of results."""


@dataclass(frozen=True)
class Preprocessing:
    """How rows of the source become model input; picklable for Ray."""

    input: Input
    max_image_bytes: int
    max_image_px: int
    fields: pa.Schema
    """The columns of the source with the input."""
    num_threads: int = 1

    @classmethod
    def of(
        cls, source: Source, seen: Input, num_threads: int, fields: pa.Schema
    ) -> Preprocessing | None:
        """Return the preprocessing of a job; None if the input needs none."""
        if not seen.stage_names:
            return None
        limits = (source.max_image_bytes, source.max_image_px)
        return cls(seen, *limits, fields, num_threads)

    def __call__(self, counters: Counters, rows: pa.Table) -> pa.Table:
        """Prepare the rows of a slice."""
        limits = Limits(self.max_image_bytes, self.max_image_px)
        with extension_errors(INPUTS, self.input.name):
            return self.input.prepare(rows, counters, limits, self.num_threads)

    def step(self, rows: pa.Table, counters: Counters) -> pa.Table:
        """Do the same, with the arguments of a `Step`."""
        return self(counters, rows)

    def step_with_reference(self, rows: pa.Table, counters: Counters) -> pa.Table:
        """Do the same, and add exact pixels for rows that eager fp32 predicts, too."""
        names = pixel_columns(self.input)
        return self(counters, with_reference_pixels(rows, counters, self.exact, names))

    def exact(self, rows: pa.Table) -> pa.Table:
        """Prepare rows exactly, for comparison."""
        return replace(self, input=self.input.exact())({}, rows)

    @property
    def plan(self) -> StagePlan:
        """Return the plan to find rows that end processes: one by one."""
        return StagePlan(self.input.stage_names[0], 1, self.step)


@dataclass(frozen=True)
class SliceWork:
    """The work of a child on the rows of a slice, if it is not safe in a worker."""

    preprocessing: Preprocessing | None
    config: PredictorConfig | None

    def open(self) -> Mapping[str, Step]:
        """Load the model, if there is one."""
        steps: dict[str, Step] = {}
        if self.preprocessing is not None:
            steps[self.preprocessing.plan.stage] = self.preprocessing.step
        if self.config is not None:
            from pipeline.inference.devices.load_runner import patiently

            config = replace(self.config, limits=None)
            steps[PREDICT] = patiently(config, lambda: open_engine(config)).predict
        return steps


def preprocess_stage(
    preprocessing: Preprocessing,
    compared: Collection[tuple[int, int]],
    run_id: str,
    row_timeout_s: float,
) -> Stage:
    """Return the stage that decodes and transforms.

    Args:
        compared: Unit and first row of the slices that carry exact pixels to the actors.
        row_timeout_s: Time limit for decoding a row.
    """

    def stage(block: pa.Table) -> pa.Table:
        work, packed = SliceWork(preprocessing, None), []
        for key, counters, rows, aside in unpack(block):
            plan = preprocessing.plan
            if (key.unit, key.start) in compared:
                plan = replace(plan, here=preprocessing.step_with_reference)
            marks, fields = crash_marks_of(run_id), preprocessing.fields
            guard = Guard(work, [plan], marks, row_timeout_s, fields=fields)
            with contextlib.closing(guard):
                rows = guard.run(f"decode-{key.unit}-{key.start}", rows, counters)
            packed.append(pack(key, counters, rows, aside))
        return pa.concat_tables(packed)

    return stage


def writer_stage(writer: StagingWriter) -> Stage:
    """Return the stage that commits slices; it returns `StagedSlice`s as JSON."""

    def stage(block: pa.Table) -> pa.Table:
        staged = [writer.write(*packed).to_json() for packed in unpack(block)]
        return pa.table({"staged": pa.array(staged, pa.string())})

    return stage


class StageActor:
    """Runs a stage slice after slice, in a process that lasts.

    The worker of a task does not last: a node with more processes than CPUs, which actors alone may
    be, ends a worker that is idle for a second. The next slice would wait seconds for a new process
    and its imports.
    """

    def __init__(self, stage: Stage, deadline_at_s: float | None = None) -> None:
        stop_retrying_at(deadline_at_s)
        self._stage = stage

    def __call__(self, block: pa.Table) -> pa.Table:
        """Run the stage on a block."""
        return self._stage(block)


class Preprocess(StageActor):
    """Decodes and transforms."""


class Write(StageActor):
    """Commits slices."""


class Read:
    """Reads unit after unit."""

    def __init__(
        self,
        read: Callable[[Any], Iterable[pa.Table]],
        units: Sequence[Any],
        get: Callable[[Any], Any],
        deadline_at_s: float | None = None,
    ) -> None:
        """Take what reads a unit, as `executors.read_unit` does, and a reference to each.

        Args:
            get: Gets the unit of a reference: the units of a million photos are half a GiB.
            deadline_at_s: When the run stops, seconds since 1970; None if it has no deadline.
        """
        stop_retrying_at(deadline_at_s)
        self._read, self._units, self._get = read, units, get

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """Yield each slice of a unit as soon as it is read.

        Args:
            block: One row, whose `item` is the index of the unit.
        """
        for index in block.column("item").to_pylist():
            yield from self._read(self._get(self._units[index]))
