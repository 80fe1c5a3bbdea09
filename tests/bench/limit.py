"""`limit`: one plain process a core, each decoding and predicting its share of the photos.

With our decoder and what `auto` chose, and without Ray, storage and publishing: nothing but the
work itself. Starting up is left out of `steady`: the processes wait for each other.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from peer_model import CORES, build, files_of
from turns import slowest_s


@dataclass(frozen=True)
class _Share:
    """What one process does."""

    files: list[str]
    name: str
    weights: str
    runtime: str
    precision: str
    batch_size: int
    calibrated: str
    """Path of the int8 model; '' for other precisions."""


def limit(
    images: str,
    name: str,
    weights: str,
    runtime: str,
    precision: str,
    batch_size: str,
    calibrated: str,
) -> dict[str, Any]:
    context = get_context("spawn")
    files = files_of(images)
    shares = [
        _Share(
            files[i::CORES],
            name,
            weights,
            runtime,
            precision,
            int(batch_size),
            calibrated,
        )
        for i in range(CORES)
    ]
    ready, done, go = context.Queue(), context.Queue(), context.Event()
    processes = [context.Process(target=_work, args=(share, ready, done, go)) for share in shares]
    seconds = slowest_s(processes, ready, done, go)
    return {"rows": len(files), "steady": len(files) / seconds}


def _work(share: _Share, ready: Any, done: Any, go: Any) -> None:
    import torch

    from pipeline.preprocessing.images.decode import DecodeLimits, decode_image
    from pipeline.preprocessing.images.resizing import resize_and_crop

    torch.set_num_threads(1)
    runner, spec, buffer = _load(share)
    limits = DecodeLimits(1 << 30, 1 << 30)
    ready.put(True)
    go.wait()
    started = time.perf_counter()
    size = share.batch_size
    for first in range(0, len(share.files), size):
        for row, path in enumerate(share.files[first : first + size]):
            image = decode_image(Path(path).read_bytes(), limits)
            buffer[row] = resize_and_crop(image, spec).permute(1, 2, 0)
        with torch.inference_mode():
            torch.softmax(runner.run({"image": buffer}).float(), 1).topk(5)
    done.put(time.perf_counter() - started)


def _load(share: _Share) -> tuple[Any, Any, Any]:
    import torch

    from pipeline.inference.runtimes.inference_module import InferenceModule
    from pipeline.inference.runtimes.opening import dtype_of, make_runner
    from pipeline.preprocessing.images.image_input import ImageInput
    from pipeline.preprocessing.model_input import BatchLimits

    module, spec = build(share.name, share.weights)
    kind = dtype_of(share.runtime, share.precision)
    seen = ImageInput(spec)
    whole = InferenceModule(
        module.to(kind).to(memory_format=torch.channels_last), seen, kind
    ).eval()
    [slot] = seen.slots(BatchLimits(share.batch_size)).values()
    buffer = torch.zeros(slot.shape, dtype=torch.uint8)
    runner = make_runner(
        share.runtime,
        share.precision,
        lambda: whole,
        {"image": buffer},
        num_threads=1,
        calibrated=Path(share.calibrated).read_bytes() if share.calibrated else None,
    )
    return runner, spec, buffer
