"""Hold the speed of this checkout to an older commit: `python tests/bench/commits.py OLD`.

Both run the same jobs over the same photos, in turn, each in its own worktree with the installed
packages: `default`, a job that says nothing of how (eager fp32), `auto`, with what `pipeline tune`
of that commit chose, and `onnxruntime`, one such choice held fixed. `whole` is rows/s of the whole
process, `streaming` the report's. Prints a line per run, then medians, the least and the most, and
the ratio of the medians.
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

import yaml
from machine import machine, today
from systems import OURS, ROOT, write_weights

from pipeline.commands.demo_photos import build_images

KINDS = ("default", "auto", "onnxruntime")
_ASKED = {
    "default": OURS["exact"],
    "auto": OURS["auto"],
    "onnxruntime": {"runtime": "onnxruntime", "precision": "fp32", "batch_size": 8},
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("old", help="a commit")
    parser.add_argument("--model", default="mobilenet_v3_large")
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS)
    wanted = parser.parse_args()
    rates: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_images(folder / "images", wanted.photos, seed=1, num_bad=0)
        model = write_weights(folder, wanted.model)
        checkouts = {"old": check_out(folder / "old", wanted.old), "new": ROOT}
        try:
            for kind in wanted.kinds:
                rates |= compare(folder, checkouts, kind, model, wanted.runs)
        finally:
            git("worktree", "remove", "--force", str(folder / "old"))
    print(json.dumps({"date": today(), "machine": machine(), "old": wanted.old} | summary(rates)))


def check_out(folder: Path, commit: str) -> Path:
    git("worktree", "add", "--detach", str(folder), commit)
    return folder


def git(*arguments: str) -> None:
    subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True)


def compare(
    folder: Path, checkouts: dict[str, Path], kind: str, model: dict[str, Any], runs: int
) -> dict[str, list[dict[str, float]]]:
    """Run one kind of job in each checkout in turn; `auto` starts with a profile in its sink."""
    found: dict[str, list[dict[str, float]]] = {f"{kind} {name}": [] for name in checkouts}
    jobs = {name: write_job(folder, name, kind, model) for name in checkouts}
    if kind == "auto":
        for name, checkout in checkouts.items():
            chosen = command(checkout, "tune", jobs[name])[0]
            print(f"auto {name} chosen: {chosen['chosen']} {chosen['batch_size']}", flush=True)
    for index in range(runs):
        for name, checkout in checkouts.items():
            partition = f"sink.partition=run={index}"
            report, wall_s = command(checkout, "run", jobs[name], "--quiet", "--set", partition)
            rows = report["rows"]["computed"]
            line = {"whole": rows / wall_s, "streaming": report["rows_per_s"]}
            found[f"{kind} {name}"].append(line)
            print(f"{kind} {name} {json.dumps(rounded(line))}", flush=True)
    return found


def write_job(folder: Path, name: str, kind: str, model: dict[str, Any]) -> str:
    document = {
        "source": {"uri": str(folder / "images"), "format": "images"},
        "model": model | _ASKED[kind],
        "sink": {"uri": str(folder / f"out-{name}-{kind}")},
        "gates": {"constant": {"mode": "off"}},  # random weights see one class everywhere
    }
    path = folder / f"{name}-{kind}.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def command(checkout: Path, *arguments: str) -> tuple[dict[str, Any], float]:
    """Run a command of a checkout; return its document and its seconds."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments, "--json"],
        cwd=checkout,
        env={**environment, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=False,
    )
    wall_s = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{checkout.name} {arguments[0]}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1]), wall_s


def summary(rates: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, lines in rates.items():
        for figure in lines[0]:
            values = sorted(line[figure] for line in lines)
            spread = {"median": statistics.median(values), "min": values[0], "max": values[-1]}
            found[f"{name} {figure}"] = rounded(spread)
            print(f"{name} {figure}: {json.dumps(rounded(spread))}", flush=True)
    for kind in KINDS:
        for figure in ("whole", "streaming"):
            old, new = (found.get(f"{kind} {name} {figure}") for name in ("old", "new"))
            if old and new:
                found[f"{kind} {figure} new/old"] = round(new["median"] / old["median"], 3)
    return found


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 1) for name, value in values.items()}


if __name__ == "__main__":
    main()
