"""Measure a job that says neither runtime nor precision: `python tests/bench/silent.py`.

Rows/s from start to end over passages with MiniLM, and over photos with ResNet-18:

- `peer`: sentence-transformers in one process (`st-1`, `st`, the faster one counts), or the
  DataLoader loop.
- `pinned`: the job with `runtime: eager`, which neither looks nor measures.
- `first`, `second`: the job that says nothing, each time into a fresh output, with an empty cache
  before the first.
- `tuned`: the same after `pipeline tune` with another empty cache.

The systems take turns, round after round, and each round begins with empty caches. Prints a line
for each run and what ran in it, then one JSON line with medians, which `--out` writes to a file,
too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import machine, today
from systems import Case, Unusable, run_job, run_peer, run_pipeline, write_weights
from text_batches import text_case
from turns import tell, usable

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.inputs.photos import build_images

PEERS = {"texts": ("st-1", "st"), "photos": ("loader",)}
RUNS = ("first", "second")
CACHE = "XDG_CACHE_HOME"


def main() -> None:
    wanted = parse()
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        for kind in wanted.kinds:
            folder = Path(name) / kind
            folder.mkdir()
            case = make_case(kind, folder, wanted)
            found[kind] = {}
            for number in range(wanted.rounds):
                for system, rate in measure(kind, case, folder / f"round-{number}"):
                    found[kind].setdefault(system, []).append(rate)
    medians = {
        kind: {system: round(statistics.median(rates), 1) for system, rates in systems.items()}
        for kind, systems in found.items()
    }
    for kind, rates in medians.items():
        peer = max(rates.get(each, 0.0) for each in PEERS[kind])
        for system, rate in rates.items():
            beside = f", {rate / peer:.2f} x the peer" if peer else ""
            print(f"{kind} {system}: {rate:,.1f} rows/s{beside}", flush=True)
    tell({"date": today(), "machine": machine(), "rows_per_s": medians, "all": found}, wanted.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kinds", nargs="*", choices=tuple(PEERS), default=tuple(PEERS))
    parser.add_argument("--texts", type=int, default=8_000)
    parser.add_argument("--photos", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the JSON line to this file")
    return parser.parse_args()


def make_case(kind: str, folder: Path, wanted: argparse.Namespace) -> Case:
    if kind == "texts":
        return text_case(folder, wanted.texts)
    build_images(folder / "images", wanted.photos, seed=1, num_bad=0)
    return Case(folder, folder / "images", wanted.photos, write_weights(folder, "resnet18"))


def measure(kind: str, case: Case, caches: Path) -> list[tuple[str, float]]:
    """Run each system once, in turn; return rows/s from start to end."""
    rates: list[tuple[str, float]] = []

    def note(system: str, found: dict[str, Any]) -> None:
        rates.append((system, found["whole"]))
        said = f", {found['choice']}" if found.get("choice") else ""
        print(f"{kind} {system}: {found['whole']:,.1f} rows/s{said}", flush=True)

    for peer in usable(PEERS[kind])[0]:
        more = [str(case.folder / f"out-{peer}-{time.time_ns()}")] if kind == "texts" else []
        try:
            note(peer, run_peer(peer, case, *more))
        except Unusable as error:
            print(f"skipped {kind} {peer}: {error}", flush=True)
    model = {**case.model, "runtime": "eager"}
    note("pinned", run_job(case, "pinned", {"model": model}, env={CACHE: str(caches / "pinned")}))
    grown = {CACHE: str(caches / "grown")}
    for system in RUNS:
        note(system, run_job(case, system, {}, env=grown))
    tuned = {CACHE: str(caches / "tuned")}
    out = case.folder / f"tuned-{time.time_ns()}"
    run_pipeline("tune", case.job("tune", out), env=tuned)
    note("tuned", run_job(case, "tuned", {}, env=tuned))
    return rates


if __name__ == "__main__":
    os.environ.pop(CACHE, None)
    main()
