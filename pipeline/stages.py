"""The Ray Data ends of the stages: unpack the slices of a block, call the stage, pack again.

The driver builds the dataset from here without importing torch: workers import what they run.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter, time
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.dedupe import DIGEST, ResultIndex, remember, slim, with_digests
from pipeline.errors import PipelineError
from pipeline.model import PredictorConfig
from pipeline.schema import pack, unpack
from pipeline.sink import StagingWriter
from pipeline.stats import DEDUPE, Counters, StageCounters, add
from pipeline.transform import TransformSpec

if TYPE_CHECKING:
    from pipeline.golden import GoldenRows
    from pipeline.job import Source
    from pipeline.predictor import Predictor

Stage = Callable[[pa.Table], pa.Table]
"""A block of packed slices in, a block of packed slices (or of results) out."""


@dataclass(frozen=True)
class Preprocessing:
    """How encoded images become model input; plain enough for Ray."""

    spec: TransformSpec
    max_image_bytes: int
    max_image_px: int
    num_threads: int = 1
    digests: bool = False
    """Keep the digest of each encoded image beside the decoded one."""

    @classmethod
    def of(
        cls,
        source: Source,
        spec: TransformSpec | None,
        num_threads: int,
        *,
        digests: bool = False,
    ) -> Preprocessing | None:
        """Return what a job asks for; None where there are no images."""
        if spec is None:
            return None
        return cls(spec, source.max_image_bytes, source.max_image_px, num_threads, digests)

    def __call__(self, counters: Counters, rows: pa.Table) -> pa.Table:
        """Decode and transform the rows of a slice."""
        from pipeline.decode import DecodeLimits
        from pipeline.preprocess import preprocess

        if self.digests and DIGEST not in rows.column_names:
            rows = with_digests(rows)
        limits = DecodeLimits(self.max_image_bytes, self.max_image_px)
        return preprocess(rows, counters, limits, self.spec, self.num_threads)


def preprocess_stage(preprocessing: Preprocessing) -> Stage:
    """Return the stage of the tasks that decode and transform."""

    def stage(block: pa.Table) -> pa.Table:
        packed = [
            pack(key, counters, preprocessing(counters, rows))
            for key, counters, rows in unpack(block)
        ]
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
        golden: GoldenRows | None = None,
    ) -> None:
        """Import torch and load the model, timing both.

        A failure is kept and raised at the first call: what an actor's constructor raises
        reaches the driver only as text.

        Args:
            config: What the Predictor is made from.
            preprocessing: How to decode what comes; None where tasks have done it already.
            index: The Ray actor that knows earlier results; None where duplicates do not matter.
            asked_at_s: The driver's clock when it asked for actors; None if the pool may grow.
            golden: Rows that must come out as they are known to before anything else is predicted.
        """
        waited_s = _waited_s(asked_at_s)
        self._preprocessing = preprocessing
        self._index = None if index is None else RemoteIndex(index)
        self._startup: Counters = {}
        self._predictor: Predictor | None = None
        self._failure: PipelineError | None = None
        started = perf_counter()
        from pipeline.predictor import Predictor

        imported = perf_counter()
        try:
            self._predictor = Predictor(config)
        except PipelineError as error:
            self._failure = error
        add(self._startup, "workers", StageCounters(busy_s=waited_s))
        add(self._startup, "imports", StageCounters(busy_s=imported - started))
        add(self._startup, "model_load", StageCounters(busy_s=perf_counter() - imported))
        if golden is not None and self._predictor is not None:
            try:
                where = f"an actor of {socket.gethostname()}"
                golden.check(config.spec, self._predictor.reduce, where, self._startup)
            except PipelineError as error:
                self._predictor, self._failure = None, error

    def __call__(self, block: pa.Table) -> pa.Table:
        """Predict every slice of a block.

        Raises:
            PipelineError: The model could not be loaded.
        """
        packed = []
        for key, counters, rows in unpack(block):
            for part, entry in self._startup.items():
                add(counters, part, StageCounters.from_dict(entry))
            self._startup = {}
            packed.append(pack(key, counters, self._predict(counters, rows)))
        return pa.concat_tables(packed)

    def _predict(self, counters: Counters, rows: pa.Table) -> pa.Table:
        if self._index is None:
            return self._compute(counters, rows)
        slimmed = slim(rows if DIGEST in rows.column_names else with_digests(rows), self._index)
        add(counters, DEDUPE, StageCounters(rows.num_rows, slimmed.num_copied))
        computed = self._compute(counters, slimmed.to_compute())
        remember(slimmed, computed, self._index)
        return slimmed.fill(computed)

    def _compute(self, counters: Counters, rows: pa.Table) -> pa.Table:
        if self._predictor is None:
            raise self._failure or PipelineError("the model was not loaded")
        if self._preprocessing is not None:
            rows = self._preprocessing(counters, rows)
        return self._predictor.predict(rows, counters)


def _waited_s(asked_at_s: float | None) -> float:
    """Return how long this actor's process took to be there; 0 if it is not the first one."""
    import ray

    if asked_at_s is None or ray.get_runtime_context().was_current_actor_reconstructed:
        return 0.0
    return max(0.0, time() - asked_at_s)  # of two machines' clocks one may be ahead


class RemoteIndex:
    """The index of a run, in a Ray actor that all predictors share."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def lookup(self, digests: Sequence[bytes]) -> tuple[list[int], pa.Table | None]:
        """Return which of the digests are known, and the results of those, in that order."""
        import ray

        found: tuple[list[int], pa.Table | None] = ray.get(self._actor.lookup.remote(digests))
        return found

    def add(self, digests: Sequence[bytes], results: pa.Table) -> None:
        """Keep the results of rows; nobody waits for it."""
        self._actor.add.remote(digests, results)


def start_index() -> Any:
    """Start the actor that knows earlier results; it ends with the run."""
    import ray

    return ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(ResultIndex).remote()


def writer_stage(writer: StagingWriter) -> Stage:
    """Return the stage that commits slices; its rows are `StagedSlice`s as JSON."""

    def stage(block: pa.Table) -> pa.Table:
        staged = [writer.write(*packed).to_json() for packed in unpack(block)]
        return pa.table({"staged": pa.array(staged, pa.string())})

    return stage
