"""What a GPU gives: `python tests/bench/gpu.py MODEL`; with `--cpu` the script runs without one.

For every precision of `eager`, and of `compile` with `--compile`: rows/s of the model alone, its
batches on the device already; rows/s of the pipeline in the second half of its rows; their ratio;
and how busy the GPU was meanwhile, as nvidia-smi says. With `--decode` all of it twice, with JPEGs
decoded on the CPU and by nvJPEG, after each decoder was measured alone; `--cpu --decode` has the
CPU's half of that. Prints lines, then JSON. The peers on the same GPU: `PEERS_DEVICE=cuda make
bench`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import machine, today
from systems import Case, run_job, write_weights

from pipeline.commands.demo_photos import build_images

BATCH = 128
_MEASURE_S = 3.0
_DECODED = 2 * BATCH
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


def alone(case: Case, runtime: str, precision: str, num_gpus: float) -> float:
    """Rows/s of the model over a batch that lies on the device."""
    import pyarrow as pa

    from pipeline.inference.predictor import Predictor
    from pipeline.job.model import Model
    from pipeline.job.transform import Transform
    from pipeline.models.resolve import resolve_model
    from pipeline.models.spec import PredictorConfig
    from pipeline.preprocessing.model_input import BatchLimits

    section = Model(**case.model, runtime=runtime, precision=precision)
    spec = resolve_model(section, Transform())
    predictor = Predictor(PredictorConfig(spec, BATCH, num_gpus, 1, pa.schema([])))
    [(name, slot)] = spec.input.slots(BatchLimits(BATCH)).items()
    device = "cuda" if num_gpus else "cpu"
    batch = {name: torch.randint(0, 255, slot.shape, dtype=torch.uint8, device=device)}
    num_rows, started = 0, 0.0
    with torch.inference_mode():
        for warm_up in (True, False):
            num_rows, started = 0, time.perf_counter()
            while time.perf_counter() - started < (0.1 if warm_up else _MEASURE_S):
                predictor._runner.run(batch)
                if num_gpus:
                    torch.cuda.synchronize()
                num_rows += BATCH
    return num_rows / (time.perf_counter() - started)


def decode_alone(case: Case, jpeg_decoder: str) -> float:
    """Rows/s of one process that decodes and transforms, with one thread beside the GPU."""
    import pyarrow as pa

    from pipeline.core.failures import failure_columns
    from pipeline.execution.stages import Preprocessing
    from pipeline.job.model import Model
    from pipeline.job.source import Source
    from pipeline.job.transform import Transform
    from pipeline.models.resolve import resolve_model

    spec = resolve_model(Model(**case.model), Transform(jpeg_decoder=jpeg_decoder)).input
    source = Source(uri=str(case.images), format="images")
    preprocessing = Preprocessing.of(source, spec, 1)
    assert preprocessing is not None
    paths = sorted(path for path in case.images.rglob("*") if path.is_file())[:_DECODED]
    images = pa.array([path.read_bytes() for path in paths], pa.large_binary())
    rows = pa.table({"image": images, **failure_columns([None] * len(paths))})
    num_rows, started = 0, 0.0
    for warm_up in (True, False):
        num_rows, started = 0, time.perf_counter()
        while time.perf_counter() - started < (0.1 if warm_up else _MEASURE_S):
            preprocessing({}, rows)
            num_rows += len(paths)
    return num_rows / (time.perf_counter() - started)


class Busy:
    """Asks nvidia-smi every second how busy the GPU is."""

    def __init__(self, *, is_gpu: bool) -> None:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        self._asking = (
            subprocess.Popen([*query, "--loop=1"], stdout=subprocess.PIPE, text=True)
            if is_gpu
            else None
        )

    def stop(self) -> float | None:
        """Return the mean of the upper half: what it was once the pipeline ran."""
        if self._asking is None:
            return None
        self._asking.terminate()
        seen = sorted(int(line) for line in self._asking.communicate()[0].split() if line.isdigit())
        return statistics.mean(seen[len(seen) // 2 :]) if seen else None


def measure(
    case: Case, runtime: str, precision: str, num_gpus: float, jpeg_decoder: str | None
) -> dict[str, Any]:
    """Run the pipeline once; with a decoder given, measure that by itself, too."""
    decoded = None if jpeg_decoder is None else decode_alone(case, jpeg_decoder)
    in_memory = alone(case, runtime, precision, num_gpus)
    busy = Busy(is_gpu=num_gpus > 0)
    found = run_job(
        case,
        f"{runtime}-{precision}-{jpeg_decoder or 'cpu'}",
        {
            "model": {**case.model, "runtime": runtime, "precision": precision},
            "resources": {"num_gpus": num_gpus},
            "transform": {"jpeg_decoder": jpeg_decoder} if jpeg_decoder else {},
        },
    )
    steady = found["steady"]
    line = {
        "runtime": runtime,
        "precision": precision,
        "jpeg_decoder": jpeg_decoder or "cpu",
        "decoded_rows_per_s": decoded and round(decoded, 1),
        "in_memory_rows_per_s": round(in_memory, 1),
        "whole_rows_per_s": round(found["whole"], 1),
        "steady_rows_per_s": steady and round(steady, 1),
        "share_of_in_memory": steady and round(steady / in_memory, 3),
        "gpu_busy_pct": busy.stop(),
        "startup": found["startup"],
    }
    print(json.dumps(line), flush=True)
    return line


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="efficientnet-lite0")
    parser.add_argument("--photos", type=int, default=20_000)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="try the script without a GPU")
    parser.add_argument("--decode", action="store_true", help="measure nvJPEG beside libjpeg")
    wanted = parser.parse_args()
    if not (wanted.cpu or torch.cuda.is_available()):
        sys.exit("no CUDA device here: run this where there is one, or try it with --cpu")
    num_gpus = 0.0 if wanted.cpu else 1.0
    precisions = ("fp32",) if wanted.cpu else PRECISIONS
    runtimes = ("eager", "compile") if wanted.compile else ("eager",)
    decoders: tuple[str | None, ...] = (None,)
    if wanted.decode:
        decoders = ("cpu",) if wanted.cpu else ("cpu", "gpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_images(folder / "images", wanted.photos, seed=1, num_bad=0)
        model = write_weights(folder, wanted.model)
        case = Case(folder, folder / "images", wanted.photos, model, 4 * BATCH)
        results = [
            measure(case, runtime, precision, num_gpus, decoder)
            for runtime in runtimes
            for precision in precisions
            for decoder in decoders
        ]
    name = None if wanted.cpu else torch.cuda.get_device_name()
    document = {"date": today(), "machine": machine(), "gpu": name, "model": wanted.model}
    print(json.dumps({**document, "photos": wanted.photos, "results": results}))


if __name__ == "__main__":
    main()
