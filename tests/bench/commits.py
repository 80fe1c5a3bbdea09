"""Hold the speed of this checkout to an older commit: `python tests/bench/commits.py OLD`.

Both run the same jobs over the same photos, photos with a detector, texts or rows of a table
(`--inputs`), in turn, each in its own worktree with the installed packages: `default`, a job that
says nothing of how, `auto`, with what `pipeline tune` of that commit chose, and `onnxruntime`, one
such choice held fixed. `whole` is rows/s of the whole process, `streaming` the report's. Prints a
line per run, then medians, the least and the most, and the ratio of the medians.
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

from detect import SIZE_PX, write_detector
from machine import machine, today
from peer_detect import MIN_SCORE
from systems import OURS, ROOT, Case, write_weights
from tables import table_case
from text_batches import text_case

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.inputs.photos import build_images

BENCH = Path(__file__).parent
KINDS = ("default", "auto", "onnxruntime")
_ASKED = {
    "default": {},
    "auto": OURS["auto"],
    "onnxruntime": {"runtime": "onnxruntime", "precision": "fp32", "batch_size": 8},
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("old", help="a commit")
    parser.add_argument("--inputs", nargs="*", choices=INPUTS, default=("photos",))
    parser.add_argument("--model", default="mobilenet_v3_large", help="of photos")
    parser.add_argument("--rows", type=int, help="instead of the usual number")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS)
    wanted = parser.parse_args()
    rates: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkouts = {"old": check_out(folder / "old", wanted.old), "new": ROOT}
        try:
            for inputs in wanted.inputs:
                (folder / inputs).mkdir()
                case = INPUTS[inputs](folder / inputs, wanted.rows, wanted.model)
                for kind in wanted.kinds:
                    rates |= compare(case, checkouts, f"{inputs} {kind}", wanted.runs)
        finally:
            git("worktree", "remove", "--force", str(folder / "old"))
    print(json.dumps({"date": today(), "machine": machine(), "old": wanted.old} | summary(rates)))


def photos(folder: Path, num_rows: int | None, model: str) -> Case:
    build_images(folder / "images", num_rows or 2000, seed=1, num_bad=0)
    return Case(folder, folder / "images", num_rows or 2000, write_weights(folder, model))


def texts(folder: Path, num_rows: int | None, _: str) -> Case:
    return text_case(folder, num_rows or 4000)


def tables(folder: Path, num_rows: int | None, _: str) -> Case:
    return table_case(folder, 100, num_rows or 2_000_000)


def detectors(folder: Path, num_rows: int | None, _: str) -> Case:
    build_images(folder / "images", num_rows or 400, seed=1, num_bad=0)
    write_detector(folder / "detector", SIZE_PX)
    model = {"path": str(folder / "detector"), "task": "detect", "min_score": MIN_SCORE}
    return Case(folder, folder / "images", num_rows or 400, model)


INPUTS = {"photos": photos, "detectors": detectors, "texts": texts, "tables": tables}


def check_out(folder: Path, commit: str) -> Path:
    git("worktree", "add", "--detach", str(folder), commit)
    return folder


def git(*arguments: str) -> None:
    subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True)


def compare(
    case: Case, checkouts: dict[str, Path], name: str, runs: int
) -> dict[str, list[dict[str, float]]]:
    """Run one kind of job in each checkout in turn; `auto` starts with a profile in its sink."""
    found: dict[str, list[dict[str, float]]] = {f"{name} {age}": [] for age in checkouts}
    kind = name.split()[1]
    jobs = {age: write_job(case, age, kind) for age in checkouts}
    if kind == "auto":
        for age, checkout in checkouts.items():
            chosen = command(checkout, "tune", jobs[age])[0]
            print(f"{name} {age} chosen: {chosen['chosen']} {chosen['batch_size']}", flush=True)
    for index in range(runs):
        for age, checkout in checkouts.items():
            partition = f"sink.partition=run={index}"
            more = ("--no-reuse",) if (checkout / "pipeline/runs/merging.py").exists() else ()
            report, wall_s = command(
                checkout, "run", jobs[age], "--quiet", "--set", partition, *more
            )
            rows = report["rows"]["computed"]
            line = {"whole": rows / wall_s, "streaming": report["rows_per_s"]}
            found[f"{name} {age}"].append(line)
            print(f"{name} {age} {json.dumps(rounded(line))}", flush=True)
    return found


def write_job(case: Case, age: str, kind: str) -> str:
    out = case.folder / f"out-{age}-{kind}"
    return case.job(f"{age}-{kind}", out, model=case.model | _ASKED[kind])


def command(checkout: Path, *arguments: str) -> tuple[dict[str, Any], float]:
    """Run a command of a checkout; return its document and its seconds."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments, "--json", "--allow-import", "tables_model"],
        cwd=checkout,
        env={**environment, "PYTHONPATH": f"{checkout}:{BENCH}"},
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
    for name in sorted({age.rpartition(" ")[0] for age in rates}):
        for figure in ("whole", "streaming"):
            old, new = (found[f"{name} {age} {figure}"]["median"] for age in ("old", "new"))
            found[f"{name} {figure} new/old"] = round(new / old, 3)
    return found


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 1) for name, value in values.items()}


if __name__ == "__main__":
    main()
