"""Hold start-up to what cannot be left out: `python tests/bench/startup.py MODEL...`.

What takes turns, each in a process of its own, over a few photos from its command to its end:

- `ours`: `pipeline run` with what `pipeline tune` chose.
- `plain`: the same with Ray as it comes, without the pipeline's patches (`PIPELINE_PLAIN_RAY=1`).
- `ray`: a Ray Data program whose actors do nothing.
- `limit`: plain processes that import torch, load the model as a run's actors do, and predict.

`over_s` is the median of `ours` less those of `ray` and `limit`; `patches_save_s` is the median of
`plain` less that of `ours`. Prints a line a model, then one JSON line.
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

from machine import machine, today
from peers_photos import CORES
from support.runs.cli import environment
from systems import CHECKOUT, LIMIT, Case, make_case, run, tune
from throughput import MODELS

from pipeline.core.environment import PLAIN_RAY

_PHOTOS, _SLICE_ROWS = 128, 32
_RAY = f"""
import ray

class Nothing:
    def __call__(self, batch):
        return batch

ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
ray.data.DataContext.get_current().enable_progress_bars = False
actors = ray.data.ActorPoolStrategy(size={CORES})
rows = ray.data.range({_PHOTOS}, override_num_blocks={_PHOTOS // _SLICE_ROWS})
for _ in rows.map_batches(Nothing, compute=actors, num_cpus=0).iter_batches(batch_size=None):
    pass
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--runs", type=int, default=3)
    wanted = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for model in wanted.models:
            case = make_case(Path(folder), model, _PHOTOS, _SLICE_ROWS)
            results.append({"model": model, **measure(case, wanted.runs)})
            print(json.dumps(results[-1]), flush=True)
    print(json.dumps({"date": today(), "machine": machine(), "results": results}))


def measure(case: Case, num_runs: int) -> dict[str, Any]:
    tuned = tune(case, "auto")
    chosen = f"{tuned['chosen']} {tuned['batch_size']}"
    seconds: dict[str, list[float]] = {}
    parts: list[dict[str, float]] = []
    for _ in range(num_runs):
        runs = {
            "ours": run("auto", case, chosen),
            "plain": run("auto", case, chosen, {PLAIN_RAY: "1"}),
            "limit": run(LIMIT, case, chosen),
        }
        parts.append(runs["ours"]["startup"])
        for name, one in runs.items():
            seconds.setdefault(name, []).append(_PHOTOS / one["whole"])
        seconds.setdefault("ray", []).append(ray_s())
    middle = {name: round(statistics.median(values), 2) for name, values in seconds.items()}
    return {
        "chosen": chosen,
        **{f"{name}_s": value for name, value in middle.items()},
        "patches_save_s": round(middle["plain"] - middle["ours"], 2),
        "over_s": round(middle["ours"] - middle["ray"] - middle["limit"], 2),
        "startup": {part: round(statistics.median(p[part] for p in parts), 2) for part in parts[0]},
    }


def ray_s() -> float:
    """Run the program of Ray Data alone."""
    started = time.perf_counter()
    program = [sys.executable, "-c", _RAY]
    subprocess.run(program, env=environment(CHECKOUT), capture_output=True, check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
