"""Measure rows/s beside a reference and the limit: `python tests/bench/throughput.py MODEL...`.

Same photos, same weights, alternating runs, medians. What is compared:

- `exact`, `auto`: `pipeline run` with eager fp32, and with what `pipeline tune` chose.
- `loader`: a torch DataLoader with a plain loop, eager fp32, as the tutorials have it.
- `ray`: Ray Data as its documentation shows it: read_images, map, an actor pool, write_parquet.
- `limit`: one plain process a core, each decoding and predicting its share with what `auto` chose,
  without Ray, storage or publishing.

`whole` is rows over the whole process, `steady` leaves start-up out. Prints lines, then JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torchvision.models import get_model

sys.path.insert(0, str(Path(__file__).parents[1]))
from cli import command, environment

from pipeline.cluster import WORKER_ENVIRONMENT as MALLOC
from pipeline.photos import build_images

BENCH = Path(__file__).parent
MODELS = ("efficientnet-lite0", "mobilenet_v3_large", "resnet18")
SYSTEMS = ("exact", "auto", "loader", "ray", "limit")


def write_weights(folder: Path, name: str) -> dict[str, Any]:
    """Return the model section of a job; torchvision models get seeded weights."""
    if name == "efficientnet-lite0":
        return {"name": name}
    path = folder / f"{name}.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        save_file(get_model(name, weights=None).state_dict(), path)
    return {"name": name, "weights": str(path)}


def run_ours(folder: Path, images: Path, model: dict[str, Any], label: str) -> dict[str, float]:
    out = folder / f"out-{label}-{time.time_ns()}"
    job = folder / f"{label}.yaml"
    document = {
        "source": {"uri": str(images), "format": "images"},
        "model": model,
        "sink": {"uri": str(out)},
        "run": {"slice_rows": 64},
    }
    job.write_text(yaml.safe_dump(document))
    keep = folder / "profiles" / model["name"]
    if keep.exists():  # the profile of `tune`, which lies below the sink
        (out / "_control").mkdir(parents=True)
        (out / "_control" / "profiles").symlink_to(keep)
    started = time.perf_counter()
    done = subprocess.run(
        command("run", str(job), "--json", "--quiet"),
        env=environment(),
        capture_output=True,
        check=True,
        text=True,
    )
    whole_s = time.perf_counter() - started
    report = json.loads(done.stdout.splitlines()[-1])
    staged = sorted(
        path.stat().st_mtime for path in (out / "_control").rglob("staging/*/*.parquet")
    )
    rows = report["rows"]["computed"]
    # The second half of the slices: what was decoded while the model loaded is used up by then.
    half = len(staged) // 2
    steady = rows * (len(staged) - 1 - half) / len(staged) / max(1e-9, staged[-1] - staged[half])
    start_up = {entry["part"]: entry["wall_s"] for entry in report["startup"]}
    print(f"{label} {json.dumps(start_up)} whole {whole_s:.1f} s", flush=True)
    return {"whole": rows / whole_s, "steady": steady}


def tune(folder: Path, images: Path, model: dict[str, Any]) -> dict[str, Any]:
    """Run `pipeline tune`; keep its profile for the runs."""
    job = folder / "tune.yaml"
    out = folder / "tuned"
    document = {
        "source": {"uri": str(images), "format": "images"},
        "model": {**model, "runtime": "auto", "precision": "auto"},
        "sink": {"uri": str(out)},
        "run": {"slice_rows": 64},
    }
    job.write_text(yaml.safe_dump(document))
    done = subprocess.run(
        command("tune", str(job), "--json"),
        env=environment(),
        capture_output=True,
        check=True,
        text=True,
    )
    keep = folder / "profiles"
    keep.mkdir(exist_ok=True)
    (out / "_control" / "profiles").rename(keep / model["name"])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_peer(system: str, images: Path, model: dict[str, Any], *more: str) -> dict[str, float]:
    arguments = [str(images), model["name"], model.get("weights", ""), *more]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(BENCH / "peers.py"), system, *arguments],
        env={
            **os.environ,
            "PYTHONPATH": str(BENCH.parent),
            **(MALLOC if system == "limit" else {}),
        },
        capture_output=True,
        check=True,
        text=True,
    )
    whole_s = time.perf_counter() - started
    found = json.loads(done.stdout.splitlines()[-1])
    return {"whole": found["rows"] / whole_s, "steady": found["steady"]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--systems", nargs="*", default=list(SYSTEMS))
    wanted = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = folder / "images"
        build_images(images, wanted.photos, seed=1, num_bad=0)
        for model_name in wanted.models:
            model = write_weights(folder, model_name)
            tuned = tune(folder, images, model)
            for trial in tuned["trials"]:
                print(f"{model_name} {json.dumps(trial)}", flush=True)
            chosen = tuned["chosen"].split()
            auto = {**model, "runtime": "auto", "precision": "auto"}
            measured: dict[str, list[dict[str, float]]] = {s: [] for s in wanted.systems}
            for _ in range(wanted.runs):
                for system in wanted.systems:
                    if system in ("exact", "auto"):
                        section = auto if system == "auto" else model
                        found = run_ours(folder, images, section, system)
                    else:
                        found = run_peer(system, images, model, *chosen)
                    measured[system].append(found)
            for system, runs in measured.items():
                line = {
                    "model": model_name,
                    "system": system,
                    "whole_rows_per_s": round(statistics.median(r["whole"] for r in runs), 1),
                    "steady_rows_per_s": round(statistics.median(r["steady"] for r in runs), 1),
                    "chosen": tuned["chosen"] if system in ("auto", "limit") else "eager fp32",
                }
                results.append(line)
                print(json.dumps(line), flush=True)
    print(json.dumps({"photos": wanted.photos, "runs": wanted.runs, "results": results}))


if __name__ == "__main__":
    main()
