"""Measure the pipeline on a GPU: `python tests/bench/gpu.py MODEL...`; `--cpu` needs none.

Over photos, or passages for `minilm`; `detector` is a YOLOS as large as its smallest published one
for images of `--detector-px`. For every precision of `eager`, and of `compile` with `--compile`,
one actor: rows/s of the whole run and without its start, and their share of the model's alone, its
batches on the device already; rows/s of one decoder; for which share of that time the device had
nothing to compute; and what the report calls the bottleneck. Texts are in the same batches either
way, sorted by length within a slice. With `--peers` Ray Data as its documentation has it and Daft
run classifiers of photos on the same device in fp32 and bf16. Prints lines, then JSON, whose
`skipped` says what failed, and why.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from machine import machine, tell, today
from safetensors.torch import load_file, save_file
from support.runs.jobs import job_over
from systems import (
    MINILM,
    Case,
    Unusable,
    make_case,
    photos_below,
    run_job,
    run_peer,
    working_s,
)
from torchvision.models import get_model
from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

from pipeline.core.failures import failure_columns
from pipeline.core.schema import TEXT
from pipeline.inference.engines.torch_engine import TorchEngine
from pipeline.job.model import Model
from pipeline.job.transform import Transform
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import PredictorConfig
from pipeline.preprocessing.model_input import Limits

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
DETECTOR = "detector"
MODELS = ("resnet50", "vit_b_16", MINILM, DETECTOR)
MIN_SCORE = 0.1
PEERS = ("ray", "daft")
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
"""Precisions of the peers, and what torch calls them."""
MEASURE_S = 3.0
_DECISION, _SPREAD = 10.0, 0.05
_SLICES = 8
"""So many slices of texts lie on the device."""
Batch = dict[str, torch.Tensor]


def measure(case: Case, runtime: str, precision: str, num_gpus: float) -> dict[str, Any]:
    """Run the pipeline once with one actor, and the model by itself."""
    report = run_job(
        case,
        f"{runtime}-{precision}",
        model={**case.model, "runtime": runtime, "precision": precision},
        resources={"num_gpus": num_gpus, "max_actors": 1},
    )
    section = Model(**case.model, runtime=runtime, precision=precision)
    work_s, model_alone = working_s(report), alone(case, section, report, num_gpus)
    stages = {stage["stage"]: stage for stage in report["stages"]}
    line = {
        "model": case.folder.name,
        "system": "ours",
        "runtime": runtime,
        "precision": precision,
        "model_alone_rows_per_s": round(model_alone, 1),
        "whole_rows_per_s": round(report["whole_rows_per_s"], 1),
        "steady_rows_per_s": round(case.num_rows / work_s, 1),
        "share_of_model_alone": round(case.num_rows / work_s / model_alone, 3),
        "idle_pct": round(100 * max(0.0, 1 - stages["predict"]["busy_s"] / work_s), 1),
        "bottleneck": report["bottleneck"]["limit"],
        "texts": report["texts"],
    }
    if report["texts"] is None:
        busy_s = stages["decode"]["busy_s"] + stages["transform"]["busy_s"]
        line["one_decoder_rows_per_s"] = round(case.num_rows / busy_s, 1)
    print(json.dumps(line), flush=True)
    return line


def measure_peer(case: Case, system: str, precision: str) -> dict[str, Any]:
    """Run a peer once, on the device that PEERS_DEVICE names."""
    os.environ["PEERS_DTYPE"] = DTYPES[precision]
    rate_by_name = run_peer(system, case)
    rates = {f"{name}_rows_per_s": round(rate, 1) for name, rate in rate_by_name.items()}
    line = {"model": case.folder.name, "system": system, "precision": precision, **rates}
    print(json.dumps(line), flush=True)
    return line


def alone(case: Case, model: Model, report: dict[str, Any], num_gpus: float) -> float:
    """Return rows/s of the model of a run over batches that lie on the device."""
    model_section = report["model"]
    sections = {"transform": Transform(**case.transform)} if case.transform else {}
    spec = resolve_model(job_over("text" if report["texts"] else "image", model, **sections))
    limits = {
        "batch_size": model_section["batch_size"],
        "batch_tokens": model_section["batch_tokens"] or 0,
    }
    config = PredictorConfig(
        spec, num_gpus=num_gpus, num_threads=1, pass_through=pa.schema([]), **limits
    )
    engine = TorchEngine(config)
    batches = list(batches_on_device(case, config, report["slices"]["computed"]))
    rate = rows_per_s(engine._model.runner.run, batches, is_on_gpu=num_gpus > 0)
    del engine, batches
    gc.collect()
    if num_gpus:
        torch.cuda.empty_cache()  # the next run needs it
    return rate


def batches_on_device(case: Case, config: PredictorConfig, num_slices: int) -> Iterator[Batch]:
    """Yield a batch of noise in place of photos, or the texts in batches as a run has them."""
    device, seen = torch.device("cuda" if config.num_gpus else "cpu"), config.spec.input
    slots = seen.slots(config.limits_of_batch)
    if not seen.counts_tokens:
        yield {
            name: torch.randint(0, 255, slot.shape, dtype=torch.uint8, device=device)
            for name, slot in slots.items()
        }
        return
    views = {name: np.zeros(math.prod(slot.shape), slot.dtype) for name, slot in slots.items()}
    texts = pq.read_table(case.inputs, columns=["text"]).column("text")
    size = -(-case.num_rows // num_slices)
    for first in range(0, min(len(texts), _SLICES * size), size):
        column = texts.slice(first, size)
        rows = pa.table({TEXT: column, **failure_columns([None] * len(column))})
        inputs = seen.arrays(seen.prepare(rows, {}, Limits(1 << 30, 1 << 30)))
        for batch in seen.batches(inputs, np.arange(len(column)), config.limits_of_batch):
            yield {
                name: torch.from_numpy(views[name][: math.prod(shape)].reshape(shape)).to(
                    device, copy=True
                )
                for name, shape in seen.gather(inputs, batch, views).items()
            }


def rows_per_s(run: Callable[[Batch], Any], batches: Sequence[Batch], *, is_on_gpu: bool) -> float:
    """Run batches one after the other, and wait for the device once, at the end.

    A wait per batch would leave gaps in which nothing is queued, and the model would look slower
    than it is.

    Args:
        run: The model.
        batches: On the device, each tensor (B, ...).
        is_on_gpu: Whether the device computes while the host goes on.
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
        count = math.ceil(MEASURE_S / max(1e-6, rounds(1)))
        seconds = rounds(count)
    return count * sum(len(next(iter(batch.values()))) for batch in batches) / seconds


def gpu_case(folder: Path, name: str, num_rows: int, detector_px: int) -> Case:
    """Make the rows of a model, and its weights.

    Raises:
        Unusable: The model of texts is not there.
    """
    if name != DETECTOR:
        case = make_case(folder, name, num_rows)
        if name != MINILM:
            decide(case.model)
        return case
    case_folder = folder / name
    case_folder.mkdir()
    model, photos = detector(case_folder, detector_px), photos_below(folder, num_rows)
    # The processor rounds sides down to multiples of a patch, which a job does not.
    transform = {"size_px": detector_px, "resize": "stretch", "interpolation": "bilinear"}
    transform |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    return Case(case_folder, photos, num_rows, model, transform=transform)


def decide(model: dict[str, Any]) -> None:
    """Let one class of random weights lead and the others differ little.

    Random logits are nearly equal or far apart, so that labels or scores of half precision are
    others: the gate that holds predictions to fp32 would refuse that.
    """
    module = get_model(model["name"], weights=None).eval()
    module.load_state_dict(load_file(model["weights"]))
    head = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)][-1]
    with torch.inference_mode():
        spread = float(module(torch.randn(4, 3, 224, 224)).std())
    with torch.no_grad():
        head.weight *= _SPREAD / max(_SPREAD, spread)
        head.bias[0] += _DECISION
    save_file(module.state_dict(), model["weights"])


def detector(folder: Path, size_px: int) -> dict[str, Any]:
    """Write a YOLOS with seeded weights, and its processor to square images of a size.

    Returns:
        The model section of a job.
    """
    path = folder / "directory"
    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=[size_px, size_px],
    )
    YolosForObjectDetection(config).save_pretrained(path)
    size = {"height": size_px, "width": size_px}
    YolosImageProcessor(size=size, do_pad=False).save_pretrained(path)
    return {"path": str(path), "task": "detect", "min_score": MIN_SCORE}


def attempts(
    case: Case, wanted: argparse.Namespace
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield what is measured of a model: its name, and what measures it."""
    runtimes = ("eager", "compile") if wanted.compile else ("eager",)
    for way in itertools.product(runtimes, ("fp32",) if wanted.cpu else PRECISIONS):
        yield " ".join(way), partial(measure, case, *way, 0.0 if wanted.cpu else 1.0)
    if "weights" in case.model:  # the programs of the peers are for classifiers of photos
        for way in itertools.product(wanted.peers, ("fp32",) if wanted.cpu else DTYPES):
            yield " ".join(way), partial(measure_peer, case, *way)


def main() -> None:
    wanted = parse()
    if not (wanted.cpu or torch.cuda.is_available()):
        sys.exit("no CUDA device here: run this where there is one, or try it with --cpu")
    os.environ["PEERS_DEVICE"] = "cpu" if wanted.cpu else "cuda"
    results, skipped = list[dict[str, Any]](), dict[str, str]()
    with tempfile.TemporaryDirectory() as folder:
        for model in wanted.models:
            try:
                case = gpu_case(Path(folder), model, wanted.rows, wanted.detector_px)
            except Unusable as error:
                skipped[model] = str(error)
                continue
            for what, attempt in attempts(case, wanted):
                try:
                    results.append(attempt())
                except Unusable as error:
                    skipped[f"{model} {what}"] = str(error)
                    print(f"skipped {model} {what}: {error}", flush=True)
    document = {
        "date": today(),
        "machine": machine(),
        "gpu": None if wanted.cpu else torch.cuda.get_device_name(),
        "rows": wanted.rows,
        "results": results,
        "skipped": skipped,
    }
    tell(document, wanted.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--rows", type=int, default=20_000, help="photos, or passages")
    parser.add_argument("--detector-px", type=int, default=640, help="sides of its images")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="try the script without a GPU")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[], help="measure these too")
    parser.add_argument("--out", type=Path, help="also write the JSON line to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
