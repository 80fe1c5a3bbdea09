"""Runs the stages of a job as a stream of Ray Data."""

from __future__ import annotations

from collections.abc import Generator

from pipeline.commit.staging import StagedSlice
from pipeline.execution import ray_options
from pipeline.execution.embedded.backpressure import limit_read_ahead, reserve_less
from pipeline.execution.predictor_actor import PredictorActor
from pipeline.execution.progress_channel import listening
from pipeline.execution.stream_parts import StreamParts
from pipeline.execution.tasks import lost_nodes_blamed, ray_errors
from pipeline.planning.allocation import Allocation


def stream(parts: StreamParts, allocation: Allocation) -> Generator[StagedSlice, None, None]:
    """Read, decode, transform, predict and stage slices; yield each one when it is committed."""
    import ray

    from pipeline.execution.datasource import ShardSource

    limit_read_ahead(allocation.max_actors)
    if allocation.reserves_cores:
        reserve_less()
    with ray_errors(), lost_nodes_blamed(), listening(parts.actor.predictor.run_id):
        # A row of this dataset is a slice (slices.pack): Ray cannot cut or merge slices.
        options = ray_options.read(allocation, len(parts.reads))
        dataset = ray.data.read_datasource(ShardSource(parts.reads), **options)
        if parts.preprocess is not None:
            dataset = dataset.map_batches(parts.preprocess, **ray_options.preprocess(allocation))
        are_long = parts.actor.predictor.spec.task.generation is not None
        pool = ray_options.predict(allocation, are_long=are_long)
        dataset = dataset.map_batches(PredictorActor, fn_constructor_args=[parts.actor], **pool)
        if parts.write is not None:
            dataset = dataset.map_batches(parts.write, **ray_options.write(allocation))
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            for text in block.column("staged").to_pylist():
                yield StagedSlice.from_json(text)
