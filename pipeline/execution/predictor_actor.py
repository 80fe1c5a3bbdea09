"""The actor pool of the model: each actor holds one engine and predicts slice after slice."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass, replace
from time import perf_counter, time
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.commit.staging import StagingWriter
from pipeline.core.backoff import stop_retrying_at
from pipeline.core.errors import InfraError, PipelineError
from pipeline.core.figures import (
    PREDICT,
    Comparison,
    Counters,
    SliceFigures,
    StageCounters,
    add,
)
from pipeline.core.registry import ENGINES
from pipeline.core.schema import ERROR
from pipeline.core.slices import SliceKey, pack, unpack
from pipeline.core.user_code import extension_errors
from pipeline.execution.environment import set_gpu_allocator, settle_gpus
from pipeline.execution.isolation.crash_guard import Guard, StagePlan
from pipeline.execution.isolation.crash_marks import CrashMarks
from pipeline.execution.progress_channel import tell_of_slices
from pipeline.execution.stages import Preprocessing, SliceWork, writer_stage
from pipeline.execution.tasks import crash_marks_of
from pipeline.execution.versions import connected_ray
from pipeline.inference.engines import engine_class, open_engine
from pipeline.inference.engines.engine import Engine
from pipeline.inference.first_rows import SystematicFailureDetector
from pipeline.inference.hardware_facts import count_device
from pipeline.inference.result_table import unpredicted
from pipeline.models.spec import PredictorConfig
from pipeline.process.liveness import no_limit, tell_parent
from pipeline.process.memory import MemoryShare

if TYPE_CHECKING:
    from pipeline.gates.golden import GoldenRows

_MAX_LOADS = 6
_NOT_LOADED = (
    "model {}: loading it ended its process {} times; see the worker's log in Ray's session "
    "folder. If memory ran out, run fewer actors (resources.max_actors)"
)


@dataclass(frozen=True)
class ActorConfig:
    """The configuration of an actor of the pool; Ray sends it to each actor."""

    predictor: PredictorConfig
    """Configuration of the engine."""
    row_timeout_s: float
    """Time limit for a batch, or for decoding a row."""
    memory: MemoryShare
    """Limit of its memory."""
    fields: pa.Schema
    """The columns of the source with the input."""
    preprocessing: Preprocessing | None = None
    """How to decode rows; None if other actors have decoded them."""
    asked_at_s: float | None = None
    """Time at which the driver asked for actors, seconds since 1970; None if the pool may grow."""
    deadline_at_s: float | None = None
    """When the run stops, seconds since 1970; None if it has no deadline. For all stages."""
    golden: GoldenRows | None = None
    """Rows whose known predictions must come out before anything else is predicted."""
    writer: StagingWriter | None = None
    """Commits predictions; None if other actors do it."""
    first_rows: SystematicFailureDetector | None = None
    """Watches the first rows; None if each failure is taken as the fault of its row."""


class PredictorActor:
    """An actor of the pool."""

    def __init__(self, config: ActorConfig) -> None:
        """Import the engine and load the model, timing both.

        A failure is kept and raised at the first call, because an error in the constructor of an
        actor reaches the driver only as text.
        """
        stop_retrying_at(config.deadline_at_s)
        if config.predictor.num_gpus:
            set_gpu_allocator()
        startup: Counters = {}
        add(startup, "workers", StageCounters(busy_s=_waited_s(config.asked_at_s)))
        attempts = crash_marks_of(config.predictor.run_id)
        attempts.forget_old_runs()
        if config.first_rows is not None:
            config.first_rows.share(attempts.folder)
        self._startup, self._telling = startup, threading.Lock()
        self._model = _Model(config, startup)
        self._guard = _guard(config, self._model, attempts)
        self._device = (config.predictor.num_gpus, config.predictor.spec.precision)
        self._commit = None if config.writer is None else writer_stage(config.writer)
        self._slice_began = tell_of_slices(config.predictor.run_id)
        self._failure: PipelineError | None = None
        try:
            started = perf_counter()
            engine_class(config.predictor.spec)
            add(startup, "imports", StageCounters(busy_s=perf_counter() - started))
            settle_gpus(config.predictor.num_gpus)
            self._model.load(attempts)
        except PipelineError as error:
            self._failure = error

    def __call__(self, block: pa.Table) -> pa.Table:
        """Predict every slice of a block, and commit it if this actor writes.

        With a GPU two threads call this at once: one slice begins while the other ends.

        Args:
            block: Packed slices of the rows of the source, or of decoded images.

        Returns:
            Packed slices of predictions, or a row for each committed slice (`writer_stage`).

        Raises:
            PipelineError: The model could not be loaded, or the store failed.
        """
        packed = []
        for key, counters, rows, aside in unpack(block):
            with self._telling:
                for part, values in self._startup.items():
                    add(counters, part, values)
                self._startup.clear()
            predicted = self._predict(key, counters, rows)
            self._model.count_unchecked(predicted, counters)
            count_device(counters, *self._device, rows.num_rows)
            packed.append(pack(key, counters, predicted, aside))
        done = pa.concat_tables(packed)
        return done if self._commit is None else self._commit(done)

    def close(self) -> None:
        """Give up the model, and end the child; for an actor whose process continues."""
        self._guard.close()
        self._model.close()
        tell_parent()

    def _predict(self, key: SliceKey, counters: Counters, rows: pa.Table) -> pa.Table:
        if self._failure is not None:
            raise self._failure
        self._slice_began()
        return self._guard.run(f"predict-{key.unit}-{key.start}", rows, counters)


class _Model:
    """The engine of an actor: loaded when the actor starts, and again after it made room."""

    def __init__(self, config: ActorConfig, startup: Counters) -> None:
        """Take the configuration, and the counters for the time of loading."""
        self._config, self._startup = config, startup
        self._limits = config.predictor.limits
        """Allowed distance from eager fp32; None after the reference check."""
        self._predictor: Engine | None = None
        self._loading = threading.Lock()

    def load(self, attempts: CrashMarks) -> None:
        """Load the model, and compare the golden rows.

        Raises:
            InfraError: Loading it has ended this actor's process several times.
            PipelineError: It cannot be loaded, or golden rows have other predictions.
        """
        config, golden = self._config.predictor, self._config.golden
        ray = connected_ray()
        # An actor that is started again keeps its id.
        actor_id = "local" if ray is None else ray.get_runtime_context().get_actor_id()
        with attempts.attempt(f"load-{actor_id}") as earlier:
            if earlier.exits >= _MAX_LOADS:
                raise InfraError(_NOT_LOADED.format(config.spec.name, earlier.exits))
            started = perf_counter()
            predictor = self._loaded(config)
            seconds = StageCounters(busy_s=perf_counter() - started)
            add(self._startup, "model_load", seconds)
            if golden is not None:
                where = f"an actor of {socket.gethostname()}"
                golden.check(config.spec, predictor.reduce, where, self._startup)
            self._predictor = predictor

    @property
    def _awaits_check(self) -> bool:
        """Tell whether the reference check of this actor is still to come."""
        predictor = self._predictor
        return self._limits is not None and (predictor is None or predictor.awaits_reference_check)

    def count_unchecked(self, predicted: pa.Table, counters: Counters) -> None:
        """Note in a slice with predictions that the check is still to come, for a gate."""
        if self._awaits_check and predicted.column(ERROR).null_count:
            SliceFigures(reference_check=Comparison()).add_to(counters)

    def preprocess(self, rows: pa.Table, counters: Counters) -> pa.Table:
        """Decode and transform rows; add exact pixels while rows are compared with eager fp32."""
        preprocessing = self._config.preprocessing
        assert preprocessing is not None
        if self._awaits_check and preprocessing.input.is_approximate:
            return preprocessing.step_with_reference(rows, counters)
        return preprocessing(counters, rows)

    def predict(self, rows: pa.Table, counters: Counters) -> pa.Table:
        """Predict rows; rows that have failed before pass unchanged."""
        config, first = self._config.predictor, self._config.first_rows
        if first is not None:
            first.prepared(rows)
        if not rows.column(ERROR).null_count:
            return unpredicted(config, rows)
        with self._loading:
            if self._predictor is None:
                with no_limit():
                    self._predictor = self._loaded(replace(config, limits=self._limits))
            predictor = self._predictor
        with extension_errors(ENGINES, config.spec.engine):
            return predictor.predict(rows, counters)

    def make_room(self) -> None:
        """Remove the model from the GPU: a child is about to load it into the same memory."""
        if self._config.predictor.num_gpus and self._predictor is not None:
            if not self._predictor.awaits_reference_check:
                self._limits = None
            self._predictor.close()
            self._predictor = None

    def close(self) -> None:
        """Close the engine, if there is one."""
        if self._predictor is not None:
            self._predictor.close()

    def _loaded(self, config: PredictorConfig) -> Engine:
        from pipeline.inference.devices.load_runner import patiently

        first = self._config.first_rows
        return patiently(config, lambda: open_engine(config, first, ends_process=True))


def _guard(config: ActorConfig, model: _Model, attempts: CrashMarks) -> Guard:
    """Return the guard of the stages of a slice: here, or in a child if that is not safe."""
    preprocessing, predictor = config.preprocessing, config.predictor
    plans = [StagePlan(PREDICT, predictor.batch_size, model.predict)]
    if preprocessing is not None:
        plans.insert(0, replace(preprocessing.plan, here=model.preprocess))
    work = SliceWork(preprocessing, predictor)
    return Guard(
        work,
        plans,
        attempts,
        config.row_timeout_s,
        model.make_room,
        fields=config.fields,
        max_bytes=config.memory.max_bytes,
    )


def _waited_s(asked_at_s: float | None) -> float:
    """Return how long the process of this actor took to start; 0 if it was restarted."""
    if asked_at_s is None:
        return 0.0
    import ray

    if ray.get_runtime_context().was_current_actor_reconstructed:
        return 0.0
    return max(0.0, time() - asked_at_s)  # the clocks of two machines may differ
