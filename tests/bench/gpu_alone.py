"""What gpu.py holds a run to: the model alone, a decoder alone, and what the machine did meanwhile.

A measurement waits for the device once, at its end: a wait per batch would leave gaps in which
nothing is queued, and the model would look slower than it is.
"""

from __future__ import annotations

import gc
import math
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import psutil
import pyarrow as pa
import torch
from systems import Case, staged_slices
from text_batches import Batch, batches_on_device

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.runs.jobs import job_over

from pipeline.core.failures import failure_columns
from pipeline.core.schema import IMAGE_FIELDS
from pipeline.execution.stages import Preprocessing
from pipeline.inference.engines.torch_engine import TorchEngine
from pipeline.job.model import Model
from pipeline.job.source import Source
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import PredictorConfig

MEASURE_S = 3.0
_DECODED = 256
_ASK_EVERY_S = 2.0
_LEAST_SLICES = 4
"""Fewer say nothing about what lies between them."""


def alone(
    case: Case, runtime: str, precision: str, num_gpus: float, found: dict[str, Any]
) -> dict[str, float]:
    """Measure the model over batches that lie on the device.

    Args:
        case: Model and rows.
        runtime: Its runtime.
        precision: Its precision.
        num_gpus: 0: on the CPU.
        found: What `run_job` returned of the same.

    Returns:
        `rows_per_s`, and for texts `tokens_per_row`, without padding.
    """
    section = Model(**case.model, runtime=runtime, precision=precision)
    takes = "text" if "text_column" in case.columns else "image"
    spec = resolve_model(job_over(takes, section))
    limits = {"batch_size": found["batch_size"], "batch_tokens": found["batch_tokens"] or 0}
    config = PredictorConfig(
        spec, num_gpus=num_gpus, num_threads=1, pass_through=pa.schema([]), **limits
    )
    predictor = TorchEngine(config)
    batches, facts = batches_on_device(case, config, found["slices"])
    rate = rows_per_s(predictor._model.runner.run, batches, is_on_gpu=num_gpus > 0)
    del predictor, batches
    give_back()
    return {"rows_per_s": rate, **facts}


def give_back() -> None:
    """Give the memory of what was measured back to the card: the next run needs it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def rows_per_s(
    run: Callable[[Batch], Any],
    batches: Sequence[Batch],
    *,
    is_on_gpu: bool,
    for_s: float = MEASURE_S,
) -> float:
    """Run batches one after the other, and wait for the device once, at the end.

    Args:
        run: The model.
        batches: On the device, each tensor (B, ...).
        is_on_gpu: Whether the device computes while the host goes on.
        for_s: For about how long.
    """

    def rounds(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            for batch in batches:
                run(batch)
        if is_on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    with torch.inference_mode():
        rounds(2)  # kernels are chosen, graphs recorded
        count = math.ceil(for_s / max(1e-6, rounds(1)))
        seconds = rounds(count)
    return count * sum(len(next(iter(batch.values()))) for batch in batches) / seconds


def decode_alone(case: Case) -> float:
    """Rows/s of one process that decodes and transforms, with one thread beside the GPU."""
    spec = resolve_model(job_over("image", Model(**case.model))).input
    preprocessing = Preprocessing.of(
        Source(uri=str(case.inputs), format="images"), spec, 1, IMAGE_FIELDS
    )
    assert preprocessing is not None
    paths = sorted(path for path in case.inputs.rglob("*") if path.is_file())[:_DECODED]
    images = pa.array([path.read_bytes() for path in paths], pa.large_binary())
    rows = pa.table({"image": images, **failure_columns([None] * len(paths))})
    num_rows, started = 0, 0.0
    for for_s in (0.1, MEASURE_S):  # the first is not counted
        num_rows, started = 0, time.perf_counter()
        while time.perf_counter() - started < for_s:
            preprocessing({}, rows)
            num_rows += len(paths)
    return num_rows / (time.perf_counter() - started)


def idle_pct(out: Path) -> float | None:
    """Return for which share of the second half of a run its only actor's model did not compute.

    By the busy seconds of its slices, on a GPU those between the events around each batch, and the
    times at which they were written. None if there are too few slices.
    """
    staged = sorted(
        (path.stat().st_mtime, footer.counters["predict"]["busy_s"])
        for path, footer in staged_slices(out).items()
    )
    half = staged[len(staged) // 2 - 1 :]
    if len(staged) < _LEAST_SLICES or half[-1][0] <= half[0][0]:
        return None
    busy_s = sum(seconds for _, seconds in half[1:])
    return round(100 * max(0.0, 1 - busy_s / (half[-1][0] - half[0][0])), 1)


class Watch:
    """What the machine does from now on: processor seconds, and what nvidia-smi says of the card.

    Without nvidia-smi, or under MIG, for which it knows no utilisation, the card's are None.
    """

    def __init__(self, *, is_gpu: bool) -> None:
        self._busy_pct: list[float] = []
        self._memory_mib: list[float] = []
        self._query = _query() if is_gpu else None
        self._ended = threading.Event()
        self._asking = threading.Thread(target=self._ask, daemon=True)
        self._asking.start()
        self._cpu_s = _cpu_s()

    def _ask(self) -> None:
        while self._query and not self._ended.wait(_ASK_EVERY_S):
            said = subprocess.run(self._query, capture_output=True, check=False, text=True)
            busy, _, memory = said.stdout.strip().partition(", ")
            for values, text in ((self._busy_pct, busy), (self._memory_mib, memory)):
                if text.isdigit():
                    values.append(float(text))

    def stop(self) -> dict[str, float | None]:
        """Return the figures; how busy the card was is the mean of the upper half: once it ran."""
        cpu_s = _cpu_s() - self._cpu_s
        self._ended.set()
        self._asking.join()
        busy = sorted(self._busy_pct)
        return {
            "host_cpu_s": round(cpu_s, 1),
            "gpu_busy_pct": mean(busy[len(busy) // 2 :]) if busy else None,
            "gpu_memory_mib": max(self._memory_mib, default=None),
        }


def _query() -> list[str] | None:
    """Return the question for the first card that torch sees, None without nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    card = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    figures = "--query-gpu=utilization.gpu,memory.used"
    return [program, "-i", card, figures, "--format=csv,noheader,nounits"]


def _cpu_s() -> float:
    """Return the processor seconds of the whole machine so far, without those of waiting."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))
