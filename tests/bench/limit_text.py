"""`limit-text`: plain processes that tokenise and embed their share of the texts.

As many as the job has actors, with the same runtime, tokenizer and division into slices and
batches, and without Ray, Arrow, storage and publishing: nothing but the work itself. Starting up is
left out of `steady`: the processes wait for each other.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from peer_texts import read_texts
from turns import slowest_s


@dataclass(frozen=True)
class _Share:
    """What one process does."""

    slices: list[list[str]]
    model: str
    runtime: str
    precision: str
    batch_rows: int
    batch_tokens: int
    num_threads: int
    calibrated: str
    """Path of the int8 model; '' for other precisions."""


def limit_text(
    texts: str,
    model: str,
    weights: str,
    out: str,
    runtime: str,
    precision: str,
    batch_rows: str,
    batch_tokens: str,
    processes: str,
    threads: str,
    slice_rows: str,
    calibrated: str,
) -> dict[str, Any]:
    context = get_context("spawn")
    _, passages = read_texts(texts)
    size, count = int(slice_rows), int(processes)
    slices = [passages[first : first + size] for first in range(0, len(passages), size)]
    batch = int(batch_rows), int(batch_tokens), int(threads)
    ready, done, go = context.Queue(), context.Queue(), context.Event()
    workers = [
        context.Process(
            target=_work,
            args=(
                _Share(slices[i::count], model, runtime, precision, *batch, calibrated),
                ready,
                done,
                go,
            ),
        )
        for i in range(count)
    ]
    seconds = slowest_s(workers, ready, done, go)
    return {"rows": len(passages), "steady": len(passages) / seconds}


def _work(share: _Share, ready: Any, done: Any, go: Any) -> None:
    import torch

    torch.set_num_threads(share.num_threads)
    embedder = _Embedder(share)
    embedder.embed(share.slices[0][:32])
    ready.put(True)
    go.wait()
    started = time.perf_counter()
    for passages in share.slices:
        embedder.embed(passages)
    done.put(time.perf_counter() - started)


class _Embedder:
    """The model of one process, with its buffers."""

    def __init__(self, share: _Share) -> None:
        import pyarrow as pa

        from pipeline.inference.devices.device import make_buffer
        from pipeline.job.model import Model
        from pipeline.job.transform import Transform
        from pipeline.models.resolving.resolve import resolve_model
        from pipeline.models.spec import PredictorConfig
        from pipeline.models.tasks import make_task

        section = Model(path=share.model, runtime=share.runtime, precision=share.precision)
        spec = resolve_model(section, Transform(), input_name="text")
        config = PredictorConfig(
            spec,
            share.batch_rows,
            0.0,
            share.num_threads,
            pa.schema([]),
            batch_tokens=share.batch_tokens,
        )
        self._input, self._limits = spec.input, config.limits_of_batch
        self._task = make_task(spec.task)
        self._buffers = make_buffer(config)
        self._views = {name: tensor.numpy() for name, tensor in self._buffers.items()}
        self._runner = _open(config, share.calibrated)

    def embed(self, passages: list[str]) -> None:
        """Embed the texts of a slice, sorted by length, in batches filled up to the limits."""
        import torch

        from pipeline.preprocessing.texts.tokenizer import tokenise

        found = tokenise(self._input.text, passages)
        ids = np.full((len(passages), found.counts.max()), self._input.text.pad_id, np.int32)
        ids[np.arange(ids.shape[1]) < found.counts[:, None]] = found.ids
        inputs = {"input_ids": ids, "num_tokens": found.counts}
        with torch.inference_mode():
            for batch in self._input.batches(inputs, np.arange(len(passages)), self._limits):
                shapes = self._input.gather(inputs, batch, self._views)
                tensors = {
                    name: self._buffers[name][: math.prod(shape)].view(shape)
                    for name, shape in shapes.items()
                }
                self._task.reduce(self._runner.run(tensors), len(batch))


def _open(config: Any, calibrated: str) -> Any:
    """Open the model as an actor does; an int8 one from its file."""
    import torch

    from pipeline.inference.devices.device import example_batch, load_runner
    from pipeline.inference.runtimes.opening import make_runner

    if not calibrated:
        return load_runner(config)
    from pipeline.inference.runtimes.inference_module import InferenceModule
    from pipeline.models.spec import load_module

    example, varying = example_batch(config, torch.device("cpu"))
    spec = config.spec
    return make_runner(
        spec.runtime,
        spec.precision,
        lambda: InferenceModule(load_module(spec), spec.input, torch.float32),
        example,
        varying=varying,
        num_threads=config.num_threads,
        calibrated=Path(calibrated).read_bytes(),
    )
