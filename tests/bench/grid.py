"""Hold `pipeline tune` to an exhaustive grid: `python tests/bench/grid.py MODEL`.

Measures every runtime and precision x batch size x division of the cores into replicas and threads:
one plain process a replica, all at the same time, the model only. A candidate whose first batch is
slower than a quarter of the best so far is abandoned. Then runs `pipeline tune` and measures what
it chose and the grid's best once more, in turn, for the best of many is partly luck. The best is
taken among the candidates whose predictions agree with eager fp32. Prints the table, then JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grid_replica import Candidate, Measured, measure, write_calibrated, write_reference
from machine import machine, today
from peer_model import CORES
from systems import MALLOC, Case, tune, write_weights

from pipeline.inference.runtimes import all_runtimes, runtime_of
from pipeline.inference.runtimes.int8 import INT8

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.inputs.photos import build_images

BATCH_SIZES = (8, 16, 32, 64, 128)
NUM_PHOTOS = 512
_MIN_AGREEMENT_PCT = 99.0
_REPEATS = 199
RUNTIMES = [runtime.name for runtime in all_runtimes()]


def main() -> None:
    wanted = parse()
    os.environ.update(MALLOC)  # for the replicas, as the pipeline's own workers have it
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_images(folder / "images", wanted.photos, seed=1, num_bad=0)
        repeat(folder / "images")
        num_rows = wanted.photos * (1 + _REPEATS)
        case = Case(folder, folder / "images", num_rows, write_weights(folder, wanted.model), 128)
        reference = folder / "reference.npz"
        write_reference(case.inputs, case.model, reference)
        for batch_size in wanted.batch_sizes:
            problem = write_calibrated(reference, case.model, batch_size)
            if problem:
                print(f"no int8 model for batches of {batch_size}: {problem}")
        grid = measure_all(reference, case.model, candidates(wanted))
        tuned = tune(case, "auto")
        chosen = chosen_of(tuned)
        min_pct = float(tuned.get("min_agreement_pct", _MIN_AGREEMENT_PCT))
        agreeing = [m for m in grid if not m.problem and m.agreement_pct >= min_pct]
        if not agreeing:
            sys.exit("no candidate of the grid ran and agrees")
        best = max(agreeing, key=lambda measured: measured.rows_per_s).candidate
        if chosen.precision == INT8:
            write_calibrated(reference, case.model, chosen.batch_size)
        rates = in_turn(reference, case.model, (best, chosen), wanted.again)
    ratio = round(rates[chosen] / rates[best], 3) if rates[best] else None
    print(f"best of the grid  {show(best)}  {rates[best]:.1f} rows/s")
    print(f"chosen by tune    {show(chosen)}  {rates[chosen]:.1f} rows/s, {ratio} of the best")
    document = {
        "date": today(),
        "machine": machine(),
        "model": wanted.model,
        "grid": [{**asdict(m.candidate), **m.figures()} for m in grid],
        "best": {**asdict(best), "rows_per_s": rates[best]},
        "chosen": {**asdict(chosen), "rows_per_s": rates[chosen]},
        "ratio": ratio,
    }
    print(json.dumps(document))


def repeat(images: Path) -> None:
    """Make so many rows that what a way takes to start does not decide what `tune` chooses."""
    photos = [path for path in images.rglob("*") if path.is_file()]
    for number in range(_REPEATS):
        for photo in photos:
            photo.with_name(f"{number:03d}-{photo.name}").hardlink_to(photo)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="efficientnet-lite0")
    parser.add_argument("--photos", type=int, default=NUM_PHOTOS, help="what tune samples from")
    parser.add_argument("--batch-sizes", nargs="*", type=int, default=list(BATCH_SIZES))
    parser.add_argument("--runtimes", nargs="*", choices=RUNTIMES, default=RUNTIMES)
    parser.add_argument("--again", type=int, default=3, help="last measurements of best and chosen")
    return parser.parse_args()


def candidates(wanted: argparse.Namespace) -> list[Candidate]:
    """Every way to run the model on all cores, eager fp32 first."""
    return [
        Candidate(runtime, precision, batch_size, CORES // threads, threads)
        for runtime in wanted.runtimes
        for precision, devices in runtime_of(runtime).precisions.items()
        if "cpu" in devices
        for batch_size in wanted.batch_sizes
        for threads in range(1, CORES + 1)
        if CORES % threads == 0
    ]


def measure_all(reference: Path, model: dict[str, Any], wanted: list[Candidate]) -> list[Measured]:
    found: list[Measured] = []
    print(
        f"{'runtime':12}{'precision':10}{'batch':>6}{'replicas':>9}{'threads':>8}   rows/s  agree"
    )
    for candidate in wanted:
        best = max((m.rows_per_s for m in found if not m.problem), default=0.0)
        measured = measure(reference, model, candidate, best)
        found.append(measured)
        print(f"{show(candidate)} {measured.show()}", flush=True)
    return found


def show(candidate: Candidate) -> str:
    return (
        f"{candidate.runtime:12}{candidate.precision:10}{candidate.batch_size:6}"
        f"{candidate.replicas:9}{candidate.threads:8}"
    )


def chosen_of(tuned: dict[str, Any]) -> Candidate:
    """What `pipeline tune` chose; what it does not say is what a run would take."""
    runtime, precision = str(tuned["chosen"]).split()[:2]
    threads = int(tuned["threads_per_actor"])
    replicas = int(tuned["actors_a_node"] or max(1, CORES // threads))
    return Candidate(runtime, precision, int(tuned["batch_size"]), replicas, threads)


def in_turn(
    reference: Path, model: dict[str, Any], pair: tuple[Candidate, Candidate], num_times: int
) -> dict[Candidate, float]:
    """The medians of both, measured in turn; 0.0 for one that cannot run."""
    rates: dict[Candidate, list[float]] = {candidate: [] for candidate in pair}
    for _ in range(max(1, num_times)):
        for candidate in rates:
            measured = measure(reference, model, candidate, 0.0)
            rates[candidate].append(measured.rows_per_s)
    return {candidate: round(statistics.median(found), 1) for candidate, found in rates.items()}


if __name__ == "__main__":
    main()
