"""What a GPU gives: `python tests/bench/gpu.py MODEL...`; with `--cpu` it runs without one.

Over photos, or passages for `minilm`; `detector` is the YOLOS of detect.py for images of
`--detector-px`. For every precision of `eager`, and of `compile` with `--compile`: rows/s of the
model alone, its batches on the device already; rows/s of the pipeline in the second half of its
rows; their ratio; and how busy the GPU was meanwhile, as nvidia-smi says. Texts are in the same
batches either way, sorted by length within a slice. With `--decode` photos are measured twice, with
JPEGs decoded on the CPU and by nvJPEG, after each decoder was measured alone; `--cpu --decode` has
the CPU's half of that. Prints lines, then JSON, whose `skipped` says what failed, and why. The
peers over photos on the same GPU: `PEERS_DEVICE=cuda make bench`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detect import write_detector
from machine import machine, today
from peer_detect import MIN_SCORE
from systems import Case, Unusable, run_job, write_weights
from text_batches import batches_on_device, text_case

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from minilm import Unreachable

from pipeline.commands.demo_photos import build_images

BATCH = 128
_MEASURE_S = 3.0
_DECODED = 2 * BATCH
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
MINILM, DETECTOR = "minilm", "detector"
MODELS = ("resnet50", "vit_b_16", MINILM, DETECTOR)
DETECTOR_PX = 640


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
        "model": case.folder.name,
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


def make_case(folder: Path, name: str, num_rows: int, detector_px: int) -> Case:
    """Make the rows of a model, and those of all that take photos once.

    Raises:
        Unreachable: The model cannot be downloaded.
    """
    own, images = folder / name, folder / "images"
    own.mkdir()
    if name == MINILM:
        return text_case(own, num_rows)
    if not images.exists():
        build_images(images, num_rows, seed=1, num_bad=0)
    if name == DETECTOR:  # as many rows of its size would be 630 MB a slice
        return Case(own, images, num_rows, detector(own, detector_px))
    return Case(own, images, num_rows, write_weights(own, name), 4 * BATCH)


def detector(folder: Path, size_px: int) -> dict[str, Any]:
    """Write a detector for square images of a size, and return the model section of a job."""
    path = folder / "directory"
    write_detector(path, size_px)
    return {"path": str(path), "task": "detect", "min_score": MIN_SCORE}


def main() -> None:
    wanted = parse()
    if not (wanted.cpu or torch.cuda.is_available()):
        sys.exit("no CUDA device here: run this where there is one, or try it with --cpu")
    results, skipped = list[dict[str, Any]](), dict[str, str]()
    with tempfile.TemporaryDirectory() as folder:
        for model in wanted.models:
            try:
                case = make_case(Path(folder), model, wanted.rows, wanted.detector_px)
            except Unreachable as error:
                skip(skipped, model, error)
                continue
            for runtime, precision, decoder in ways(wanted, case):
                try:
                    found = measure(case, runtime, precision, 0.0 if wanted.cpu else 1.0, decoder)
                except Unusable as error:
                    skip(skipped, f"{model} {runtime} {precision} {decoder or ''}".strip(), error)
                    continue
                results.append(found)
    document = {
        "date": today(),
        "machine": machine(),
        "gpu": None if wanted.cpu else torch.cuda.get_device_name(),
        "rows": wanted.rows,
        "results": results,
        "skipped": skipped,
    }
    print(json.dumps(document))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--rows", type=int, default=20_000, help="photos, or passages")
    parser.add_argument("--detector-px", type=int, default=DETECTOR_PX, help="sides of its images")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="try the script without a GPU")
    parser.add_argument("--decode", action="store_true", help="measure nvJPEG beside libjpeg")
    return parser.parse_args()


def ways(wanted: argparse.Namespace, case: Case) -> Iterator[tuple[str, str, str | None]]:
    """Yield runtime, precision and decoder of JPEGs; None: it is not measured by itself."""
    decoders: tuple[str | None, ...] = (None,)
    if wanted.decode and case.columns["format"] == "images":
        decoders = ("cpu",) if wanted.cpu else ("cpu", "gpu")
    yield from itertools.product(
        ("eager", "compile") if wanted.compile else ("eager",),
        ("fp32",) if wanted.cpu else PRECISIONS,
        decoders,
    )


def skip(skipped: dict[str, str], what: str, error: Exception) -> None:
    skipped[what] = str(error)
    print(f"skipped {what}: {error}", flush=True)


if __name__ == "__main__":
    main()
