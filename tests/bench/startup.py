"""Hold start-up to what cannot be left out: `python tests/bench/startup.py MODEL...`.

What takes turns, each in a process of its own, timed from its command on:

- `ours`: `pipeline run` with what `pipeline tune` chose, to its first committed slice of one batch.
- `plain`: the same with Ray as it comes, without the pipeline's patches (`PIPELINE_PLAIN_RAY=1`).
- `ray`: a Ray Data program whose actors do nothing, to its first batch.
- `model`: a plain process that imports torch, loads the model as a run's actor does, and predicts
  one batch.

`over_s` is the median of `ours` less those of `ray` and `model`; `patches_save_s` is the median of
`plain` less that of `ours`. The rows/s are those of whole runs of few rows: they show what a short
run gains. Prints lines, then one JSON line.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from machine import machine, today
from peer_model import CORES
from systems import CHECKOUT, INT8, Case, run, tune, write_weights
from throughput import MODELS

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support/toys"))
from support.inputs.photos import build_images
from support.runs.cli import environment

from pipeline.core.environment import PLAIN_RAY
from pipeline.job.reading.loader import read_job
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import PredictorConfig
from pipeline.storage.store import Store

_PHOTOS = 128
_BATCH = 32
"""Rows of a slice, so that the first one is committed soon."""


def main() -> None:
    if sys.argv[1:] and sys.argv[1] in CHILDREN:
        CHILDREN[sys.argv[1]](*sys.argv[2:])
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--runs", type=int, default=3)
    wanted = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        images = Path(name) / "images"
        build_images(images, _PHOTOS, seed=1, num_bad=0)
        for model in wanted.models:
            own = Path(name) / model
            own.mkdir()
            case = Case(own, images, _PHOTOS, write_weights(own, model), slice_rows=_BATCH)
            results.append(measure(case, wanted.runs))
            print(json.dumps(results[-1]), flush=True)
    print(json.dumps({"date": today(), "machine": machine(), "results": results}))


def measure(case: Case, num_runs: int) -> dict[str, Any]:
    found = tune(case, "auto")
    config = case.folder / "config.pickle"
    config.write_bytes(pickle.dumps(as_config(case, found)))
    seconds: dict[str, list[float]] = {"ours": [], "plain": [], "ray": [], "model": []}
    rates: dict[str, list[float]] = {"ours": [], "plain": []}
    parts: list[dict[str, float]] = []
    for _ in range(num_runs):
        ours = run("auto", case, "")
        with plain_ray():
            plain = run("auto", case, "")
        for name, one in (("ours", ours), ("plain", plain)):
            seconds[name].append(one["first_slice_s"])
            rates[name].append(one["whole"])
        parts.append(ours["startup"])
        seconds["ray"].append(child("ray", str(CORES)))
        seconds["model"].append(child("model", str(config)))
    middle = {name: round(statistics.median(values), 2) for name, values in seconds.items()}
    return {
        "model": case.model["name"],
        "chosen": found["chosen"],
        **{f"{name}_s": value for name, value in middle.items()},
        "patches_save_s": round(middle["plain"] - middle["ours"], 2),
        **{f"{name}_rows_per_s": round(statistics.median(rates[name]), 1) for name in rates},
        "over_s": round(middle["ours"] - middle["ray"] - middle["model"], 2),
        "startup": {part: round(statistics.median(p[part] for p in parts), 2) for part in parts[0]},
    }


@contextmanager
def plain_ray() -> Iterator[None]:
    """Let runs in the body leave Ray as it comes."""
    os.environ[PLAIN_RAY] = "1"
    try:
        yield
    finally:
        del os.environ[PLAIN_RAY]


def as_config(case: Case, found: dict[str, Any]) -> PredictorConfig:
    """What an actor of the run gets."""
    job = read_job(
        case.job("config", case.folder, model=case.model), date=dt.date.fromisoformat(today())
    )
    spec = resolve_model(job)
    runtime, precision = found["chosen"].split()
    sha256 = Path(case.calibrated()).stem if precision == INT8 else None
    control = case.folder / "_control"  # where a sink keeps its calibrated models
    control.mkdir(exist_ok=True)
    if sha256 is not None and not (control / "models").exists():
        (control / "models").symlink_to(case.folder / "models")
    return PredictorConfig(
        spec=replace(spec, runtime=runtime, precision=precision, artefact_sha256=sha256),
        batch_size=found["batch_size"],
        num_gpus=0.0,
        num_threads=1,
        pass_through=pa.schema([]),
        models=Store(str(case.folder), {}),
    )


def child(name: str, *arguments: str) -> float:
    """Run this file as a child; return the seconds from its start to its first batch."""
    began = time.time()
    done = subprocess.run(
        [sys.executable, __file__, name, *arguments],
        env=environment(CHECKOUT),
        capture_output=True,
        check=True,
        text=True,
    )
    return float(done.stdout.splitlines()[-1]) - began


def ray_child(num_actors: str) -> None:
    import ray

    class Nothing:
        def __call__(self, batch: Any) -> Any:
            return batch

    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.range(_PHOTOS, override_num_blocks=_PHOTOS // _BATCH).map_batches(
        Nothing, compute=ray.data.ActorPoolStrategy(size=int(num_actors)), num_cpus=0
    )
    next(iter(rows.iter_batches(batch_size=None)))
    print(time.time())


def model_child(path: str) -> None:
    import numpy as np

    from pipeline.inference.engines.torch_engine import TorchEngine

    config: PredictorConfig = pickle.loads(Path(path).read_bytes())
    slots = config.spec.input.slots(config.limits_of_batch)
    TorchEngine(config).reduce(
        {name: np.zeros(slot.shape, slot.dtype) for name, slot in slots.items()}
    )
    print(time.time())


CHILDREN = {"ray": ray_child, "model": model_child}

if __name__ == "__main__":
    main()
