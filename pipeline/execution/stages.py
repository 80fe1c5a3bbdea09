"""The Ray Data ends of the stages: unpack the slices of a block, call the stage, pack again.

The driver builds the dataset from here without importing torch: workers import what they run.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from time import perf_counter, time
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.commit.staging import StagingWriter
from pipeline.core.counters import DEDUPE, Counters, StageCounters, add
from pipeline.core.errors import InfraError, PipelineError
from pipeline.core.schema import DIGEST, ERROR, SliceKey, pack, unpack
from pipeline.core.watchdog import pause
from pipeline.execution.dedupe import remember, slim, with_digests
from pipeline.execution.dedupe_actor import RemoteIndex
from pipeline.execution.isolation.child_process import Step
from pipeline.execution.isolation.crash_guard import Guard
from pipeline.execution.isolation.row_isolation import StagePlan
from pipeline.execution.tasks import attempts_of
from pipeline.inference.first_rows import FirstRows
from pipeline.inference.prediction_table import unpredicted
from pipeline.inference.ticks import Channel, begin, tell
from pipeline.models.spec import PredictorConfig
from pipeline.models.tasks import make_task
from pipeline.preprocessing.model_input import Input, Limits
from pipeline.preprocessing.reference_pixels import with_exact_pixels

if TYPE_CHECKING:
    from pipeline.gates.golden import GoldenRows
    from pipeline.inference.predictor import Predictor
    from pipeline.job.source import Source

PREDICT = "predict"
_MAX_LOADS = 6
_NOT_LOADED = (
    "model {}: loading it ended its process {} times; the worker's log in Ray's session folder "
    "says where. If that was lack of memory, run fewer actors (resources.max_actors)"
)

Stage = Callable[[pa.Table], pa.Table]
"""A block of packed slices in, a block of packed slices (or of results) out."""


@dataclass(frozen=True)
class Preprocessing:
    """How rows of the source become model input; plain enough for Ray."""

    input: Input
    max_image_bytes: int
    max_image_px: int
    num_threads: int = 1
    digests: bool = False
    """Keep the digest of each encoded image beside the decoded one."""

    @classmethod
    def of(
        cls,
        source: Source,
        seen: Input,
        num_threads: int,
        *,
        digests: bool = False,
    ) -> Preprocessing | None:
        """Return what a job asks for; None if the input needs no preparing."""
        if not seen.stage_names:
            return None
        return cls(seen, source.max_image_bytes, source.max_image_px, num_threads, digests)

    def __call__(self, counters: Counters, rows: pa.Table) -> pa.Table:
        """Prepare the rows of a slice."""
        if self.digests and DIGEST not in rows.column_names:
            rows = with_digests(rows)
        limits = Limits(self.max_image_bytes, self.max_image_px)
        return self.input.prepare(rows, counters, limits, self.num_threads)

    def step(self, rows: pa.Table, counters: Counters) -> pa.Table:
        """Do the same, as a child does it."""
        return self(counters, rows)

    def compared_step(self, rows: pa.Table, counters: Counters) -> pa.Table:
        """Do the same, and add exact pixels of the rows that eager fp32 is to predict, too."""
        return self(counters, with_exact_pixels(rows, counters, self.exact))

    def exact(self, rows: pa.Table) -> pa.Table:
        """Prepare rows to the values that others are compared with."""
        return replace(self, input=self.input.exact())({}, rows)

    @property
    def plan(self) -> StagePlan:
        """Return how to find the rows that end processes: one by one."""
        return StagePlan(self.input.stage_names[0], 1, self.step)


@dataclass(frozen=True)
class SliceWork:
    """What a child does with the rows of a slice, where that is not safe in a worker."""

    preprocessing: Preprocessing | None
    config: PredictorConfig | None

    def open(self) -> Mapping[str, Step]:
        """Load the model, if there is one to load."""
        steps: dict[str, Step] = {}
        if self.preprocessing is not None:
            steps[self.preprocessing.plan.stage] = self.preprocessing.step
        if self.config is not None:
            from pipeline.inference.predictor import Predictor

            steps[PREDICT] = Predictor(replace(self.config, limits=None)).predict
        return steps


def preprocess_stage(
    preprocessing: Preprocessing,
    compared: Collection[tuple[int, int]],
    run_id: str,
    row_timeout_s: float,
) -> Stage:
    """Return the stage of the tasks that decode and transform.

    Args:
        preprocessing: How.
        compared: Unit and first row of the slices that carry exact pixels to the actors.
        run_id: Of the run.
        row_timeout_s: How long the decoding of a row may take.
    """

    def stage(block: pa.Table) -> pa.Table:
        work, packed = SliceWork(preprocessing, None), []
        for key, counters, rows in unpack(block):
            plan = preprocessing.plan
            if (key.unit, key.start) in compared:
                plan = replace(plan, here=preprocessing.compared_step)
            guard = Guard(work, [plan], attempts_of(run_id), row_timeout_s)
            with contextlib.closing(guard):
                rows = guard.run(f"decode-{key.unit}-{key.start}", rows, counters)
            packed.append(pack(key, counters, rows))
        return pa.concat_tables(packed)

    return stage


class PredictorActor:
    """An actor of the pool: holds one Predictor."""

    def __init__(
        self,
        config: PredictorConfig,
        preprocessing: Preprocessing | None,
        index: Any,
        asked_at_s: float | None,
        golden: GoldenRows | None,
        row_timeout_s: float,
        writer: StagingWriter | None = None,
        first: FirstRows | None = None,
        channel: Channel | None = None,
    ) -> None:
        """Import torch and load the model, timing both.

        A failure is kept and raised at the first call: what an actor's constructor raises
        reaches the driver only as text. When loading the model has ended this actor's process
        several times, that is the failure.

        Args:
            config: What the Predictor is made from.
            preprocessing: How to decode what comes; None where tasks have done it already.
            index: The Ray actor that knows earlier results; None where duplicates do not matter.
            asked_at_s: The driver's clock when it asked for actors; None if the pool may grow.
            golden: Rows that must come out as they are known to before anything else is predicted.
            row_timeout_s: How long a batch, or the decoding of a row, may take.
            writer: Commits what was predicted; None where tasks do it.
            first: Watches the first rows; None where rows alone are to blame for what fails.
            channel: Where to tell how far this actor is; None if no progress is shown.
        """
        waited_s = _waited_s(asked_at_s)
        self._config, self._first = config, first
        self._index = None if index is None else RemoteIndex(index)
        self._commit = None if writer is None else writer_stage(writer)
        self._startup: Counters = {}
        self._predictor: Predictor | None = None
        self._failure: PipelineError | None = None
        started = perf_counter()
        importlib.import_module("pipeline.inference.predictor")
        add(self._startup, "workers", StageCounters(busy_s=waited_s))
        add(self._startup, "imports", StageCounters(busy_s=perf_counter() - started))
        attempts = attempts_of(config.run_id)
        if first is not None:
            first.share(attempts.folder)
        plan = StagePlan(PREDICT, config.batch_size, self._predict_here)
        self._preprocessing = preprocessing
        plans = [plan]
        if preprocessing is not None:
            plans.insert(0, replace(preprocessing.plan, here=self._preprocess_here))
        work = SliceWork(preprocessing, config)
        self._guard = Guard(work, plans, attempts, row_timeout_s, self._make_room)
        tell(channel)
        with attempts.attempt(f"load-{_actor_id()}") as earlier:
            try:
                if earlier.deaths >= _MAX_LOADS:
                    raise InfraError(_NOT_LOADED.format(config.spec.name, earlier.deaths))
                self._predictor = self._load(config, golden)
            except PipelineError as error:
                self._failure = error

    def _load(self, config: PredictorConfig, golden: GoldenRows | None) -> Predictor:
        from pipeline.inference.predictor import Predictor

        started = perf_counter()
        predictor = Predictor(config, self._first)
        add(self._startup, "model_load", StageCounters(busy_s=perf_counter() - started))
        if golden is not None:
            where = f"an actor of {socket.gethostname()}"
            golden.check(config.spec, predictor.reduce, where, self._startup)
        return predictor

    def __call__(self, block: pa.Table) -> pa.Table:
        """Predict every slice of a block, and commit it if that is this actor's to do.

        Raises:
            PipelineError: The model could not be loaded, or the store failed.
        """
        packed = []
        for key, counters, rows in unpack(block):
            for part, entry in self._startup.items():
                add(counters, part, StageCounters.from_dict(entry))
            self._startup = {}
            packed.append(pack(key, counters, self._predict(key, counters, rows)))
        predicted = pa.concat_tables(packed)
        return predicted if self._commit is None else self._commit(predicted)

    def _predict(self, key: SliceKey, counters: Counters, rows: pa.Table) -> pa.Table:
        if self._failure is not None:
            raise self._failure
        begin((key.unit, key.start))
        name = f"predict-{key.unit}-{key.start}"
        if self._index is None:
            return self._guard.run(name, rows, counters)
        slimmed = slim(rows if DIGEST in rows.column_names else with_digests(rows), self._index)
        add(counters, DEDUPE, StageCounters(rows.num_rows, slimmed.num_copied))
        computed = self._guard.run(name, slimmed.to_compute(), counters)
        remember(slimmed, computed, self._index)
        return slimmed.fill(computed)

    def _preprocess_here(self, rows: pa.Table, counters: Counters) -> pa.Table:
        preprocessing, predictor = self._preprocessing, self._predictor
        assert preprocessing is not None
        is_compared = predictor is not None and predictor.awaits_canary
        if is_compared and preprocessing.input.is_approximate:
            return preprocessing.compared_step(rows, counters)
        return preprocessing(counters, rows)

    def _predict_here(self, rows: pa.Table, counters: Counters) -> pa.Table:
        config = self._config
        if not rows.column(ERROR).null_count:
            return unpredicted(make_task(config.spec.task), config.pass_through, rows)
        if self._predictor is None:
            from pipeline.inference.predictor import Predictor

            with pause():
                self._predictor = Predictor(replace(config, limits=None), self._first)
        return self._predictor.predict(rows, counters)

    def _make_room(self) -> None:
        """Take the model off the GPU: a child that needs the same memory is about to load it."""
        if self._config.num_gpus:
            import torch

            self._predictor = None
            gc.collect()
            torch.cuda.empty_cache()


def _actor_id() -> str:
    """Return the id of this actor, which it keeps when it is started again."""
    import ray

    actor_id: str = ray.get_runtime_context().get_actor_id()
    return actor_id


def _waited_s(asked_at_s: float | None) -> float:
    """Return how long this actor's process took to be there; 0 if it is not the first one."""
    import ray

    if asked_at_s is None or ray.get_runtime_context().was_current_actor_reconstructed:
        return 0.0
    return max(0.0, time() - asked_at_s)  # of two machines' clocks one may be ahead


def writer_stage(writer: StagingWriter) -> Stage:
    """Return the stage that commits slices; its rows are `StagedSlice`s as JSON."""

    def stage(block: pa.Table) -> pa.Table:
        staged = [writer.write(*packed).to_json() for packed in unpack(block)]
        return pa.table({"staged": pa.array(staged, pa.string())})

    return stage
