"""`limit`: one plain process a core, each decoding and predicting its share of the photos.

With our decoder and what `auto` chose, and without Ray, storage and publishing: nothing but the
work itself. Starting up does not count: the processes wait for each other.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from peers_photos import CORES, Done, build, files_of

_all_are_ready: Any = None
"""Of a process."""


def limit(
    images: str,
    name: str,
    weights: str,
    runtime: str,
    precision: str,
    batch_size: str,
    calibrated: str,
) -> Done:
    """Predict the photos; `calibrated` is the path of the int8 model, '' for other precisions."""
    files, context = files_of(images), get_context("spawn")
    model = (name, weights, runtime, precision, int(batch_size), calibrated)
    ready = context.Barrier(CORES)
    with ProcessPoolExecutor(CORES, context, initializer=_wait_at, initargs=(ready,)) as pool:
        done = [pool.submit(_work, files[core::CORES], *model) for core in range(CORES)]
        return len(files), max(future.result() for future in done)


def _wait_at(ready: Any) -> None:
    global _all_are_ready
    _all_are_ready = ready


def _work(files: list[str], name: str, weights: str, *how: Any) -> float:
    """Return the seconds that it took from when all processes had loaded their model."""
    import torch

    from pipeline.preprocessing.images.decode_image import DecodeLimits, decode_image
    from pipeline.preprocessing.images.resizing import resize_and_crop

    torch.set_num_threads(1)
    runner, spec, buffer = _load(name, weights, *how)
    limits, size = DecodeLimits(1 << 30, 1 << 30), len(buffer)
    _all_are_ready.wait(600)
    started = time.perf_counter()
    for first in range(0, len(files), size):
        for row, path in enumerate(files[first : first + size]):
            image = decode_image(Path(path).read_bytes(), limits)
            buffer[row] = resize_and_crop(image, spec).permute(1, 2, 0)
        with torch.inference_mode():
            torch.softmax(runner.run({"image": buffer}).float(), 1).topk(5)
    return time.perf_counter() - started


def _load(
    name: str, weights: str, runtime: str, precision: str, batch_size: int, calibrated: str
) -> tuple[Any, Any, Any]:
    import torch

    from pipeline.inference.runtimes.inference_module import InferenceModule
    from pipeline.inference.runtimes.make_runner import dtype_of, make_runner
    from pipeline.preprocessing.images.image_input import ImageInput
    from pipeline.preprocessing.model_input import BatchLimits

    module, spec = build(name, weights)
    dtype, seen = dtype_of(runtime, precision), ImageInput(spec)
    whole = InferenceModule(
        module.to(dtype).to(memory_format=torch.channels_last), seen, dtype
    ).eval()
    [slot] = seen.slots(BatchLimits(batch_size)).values()
    buffer = torch.zeros(slot.shape, dtype=torch.uint8)
    runner = make_runner(
        runtime,
        precision,
        lambda: whole,
        {"image": buffer},
        num_threads=1,
        calibrated=Path(calibrated).read_bytes() if calibrated else None,
    )
    return runner, spec, buffer
