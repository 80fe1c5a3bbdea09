"""What a GPU gives: `python tests/bench/gpu.py MODEL...`; with `--cpu` it runs without one.

Over photos, or passages for `minilm`. For every precision of `eager`, and of `compile` with
`--compile`: rows/s of the model alone, its batches on the device already; rows/s of the pipeline in
the second half of its rows; their ratio; and how busy the GPU was meanwhile, as nvidia-smi says.
Texts are in the same batches either way, sorted by length within a slice. With `--decode` photos
are measured twice, with JPEGs decoded on the CPU and by nvJPEG, after each decoder was measured
alone; `--cpu --decode` has the CPU's half of that. Prints lines, then JSON. The peers over photos
on the same GPU: `PEERS_DEVICE=cuda make bench`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from machine import machine, today
from systems import Case, run_job, write_weights
from text_batches import batches_on_device, text_case

from pipeline.commands.demo_photos import build_images

BATCH = 128
_MEASURE_S = 3.0
_DECODED = 2 * BATCH
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
MINILM = "minilm"
MODELS = ("efficientnet-lite0", "vit_b_16", MINILM)


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
    import pyarrow as pa

    from pipeline.inference.predictor import Predictor
    from pipeline.job.model import Model
    from pipeline.job.transform import Transform
    from pipeline.models.resolve import resolve_model
    from pipeline.models.spec import PredictorConfig

    section = Model(**case.model, runtime=runtime, precision=precision)
    takes = "text" if "text_column" in case.columns else "image"
    spec = resolve_model(section, Transform(), input_name=takes)
    limits = {"batch_size": found["batch_size"], "batch_tokens": found["batch_tokens"] or 0}
    config = PredictorConfig(
        spec, num_gpus=num_gpus, num_threads=1, pass_through=pa.schema([]), **limits
    )
    predictor = Predictor(config)
    batches, facts = batches_on_device(case, config, found["slices"])
    num_rows, started = 0, 0.0
    with torch.inference_mode():
        for warm_up in (True, False):
            num_rows, started = 0, time.perf_counter()
            while time.perf_counter() - started < (0.1 if warm_up else _MEASURE_S):
                for batch in batches:
                    predictor._runner.run(batch)
                    num_rows += len(next(iter(batch.values())))
                if num_gpus:
                    torch.cuda.synchronize()
    return {"rows_per_s": num_rows / (time.perf_counter() - started), **facts}


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
    source = Source(uri=str(case.inputs), format="images")
    preprocessing = Preprocessing.of(source, spec, 1)
    assert preprocessing is not None
    paths = sorted(path for path in case.inputs.rglob("*") if path.is_file())[:_DECODED]
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
    busy_pct, steady = busy.stop(), found["steady"]
    model_alone = alone(case, runtime, precision, num_gpus, found)
    in_memory = model_alone.pop("rows_per_s")
    line = {
        "model": Path(case.model.get("name") or MINILM).name,
        "runtime": runtime,
        "precision": precision,
        "jpeg_decoder": jpeg_decoder or "cpu",
        "decoded_rows_per_s": decoded and round(decoded, 1),
        "in_memory_rows_per_s": round(in_memory, 1),
        "whole_rows_per_s": round(found["whole"], 1),
        "steady_rows_per_s": steady and round(steady, 1),
        "share_of_in_memory": steady and round(steady / in_memory, 3),
        "gpu_busy_pct": busy_pct,
        **(of_texts(found, in_memory, model_alone["tokens_per_row"]) if model_alone else {}),
        "startup": found["startup"],
    }
    print(json.dumps(line), flush=True)
    return line


def of_texts(found: dict[str, Any], in_memory: float, tokens_per_row: float) -> dict[str, Any]:
    """Return what only texts have; tokens/s do not count padding."""
    steady = found["steady"]
    return {
        "tokens_per_row": tokens_per_row,
        "in_memory_tokens_per_s": round(in_memory * tokens_per_row),
        "steady_tokens_per_s": steady and round(steady * tokens_per_row),
        "padding_pct": found["padding_pct"],
    }


def cases(folder: Path, models: Iterable[str], num_rows: int) -> Iterator[Case]:
    """Make the rows of each model, and those of all that take photos once."""
    images = folder / "images"
    for name in models:
        own = folder / name
        own.mkdir()
        if name == MINILM:
            yield text_case(own, num_rows)
            continue
        if not images.exists():
            build_images(images, num_rows, seed=1, num_bad=0)
        yield Case(own, images, num_rows, write_weights(own, name), 4 * BATCH)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--rows", type=int, default=20_000, help="photos, or passages")
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
        results = [
            measure(case, runtime, precision, num_gpus, decoder)
            for case in cases(Path(name), wanted.models, wanted.rows)
            for runtime in runtimes
            for precision in precisions
            for decoder in (decoders if "images" in case.columns.values() else (None,))
        ]
    name = None if wanted.cpu else torch.cuda.get_device_name()
    document = {"date": today(), "machine": machine(), "gpu": name}
    print(json.dumps({**document, "rows": wanted.rows, "results": results}))


if __name__ == "__main__":
    main()
