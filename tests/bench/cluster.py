"""Measure rows/s of a cluster beside the embedded Ray on the same cores: `tests/bench/cluster.py`.

The cluster is a head without CPUs and nodes with Ray's own defaults, as `ray start` makes them: one
node of four CPUs (`node`), or as many nodes of one CPU as this machine has (`nodes`). Actors are as
many as this machine's CPUs everywhere. Photos are classified by EfficientNet-Lite0 (`photos`), and
by a model that sleeps 30 ms a row (`30 ms`), which other work on this machine hardly disturbs. All
take turns, in slices of 16 and of 64 rows; each turn has a cluster of its own, and its first run
starts what Ray Data has one of per cluster.

Prints rows/s of each run: `whole`, of the whole process; `streaming`, from the first request for
actors to the last slice; `steady`, the same without what actors took to start and to load the
model. Then each median, and steady rows/s as a share of the embedded ones.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from machine import machine, tell, today
from models import LABELS, TRANSFORM
from support.servers.raynodes import RayNodes
from systems import Case, make_case, photos_below, run_job, working_s

CPUS = os.cpu_count() or 1
EMBEDDED = "embedded"
SHAPES = {"node": (1, 4), "nodes": (CPUS, 1)}
"""Nodes, and the CPUs of each."""
SLEEPING = {"factory": "models:slow_colours", "args": {"row_s": 0.03}, "labels": LABELS}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--kinds", nargs="*", default=["photos", "30 ms"])
    parser.add_argument("--systems", nargs="*", default=[EMBEDDED, *SHAPES])
    parser.add_argument("--slice-rows", nargs="*", type=int, default=[64, 16])
    parser.add_argument("--out", type=Path, help="also write the JSON line to this file")
    wanted = parser.parse_args()
    runs: dict[tuple[str, int, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        cases = cases_of(Path(name), wanted.rows, wanted.kinds)
        for _ in range(wanted.runs):
            for system in wanted.systems:
                with environment_of(system) as env:
                    for kind, case in cases.items():
                        for rows in wanted.slice_rows:
                            result = run(case, system, env, rows)
                            runs.setdefault((kind, rows, system), []).append(result)
                            print(f"{kind}, {rows} a slice, {system}: {result}", flush=True)
    medians = {
        key: {name: statistics.median(run[name] for run in these) for name in these[0]}
        for key, these in runs.items()
    }
    results = []
    for (kind, rows, system), figures in medians.items():
        base = medians.get((kind, rows, EMBEDDED), figures)
        share = {"of_embedded": round(figures["steady"] / base["steady"], 2)}
        results.append({"rows": kind, "slice_rows": rows, "system": system, **figures, **share})
        print(results[-1], flush=True)
    document = {"date": today(), "kind": "cluster", "machine": machine(), "results": results}
    tell(document, wanted.out)


def cases_of(folder: Path, num_rows: int, kinds: list[str]) -> dict[str, Case]:
    """Write photos, and return what is measured over them."""
    cases: dict[str, Case] = {}
    if "photos" in kinds:
        cases["photos"] = make_case(folder, "efficientnet-lite0", num_rows)
    if "30 ms" in kinds:
        (below := folder / "sleeping").mkdir()
        photos = photos_below(folder, num_rows)
        cases["30 ms"] = Case(below, photos, num_rows, SLEEPING, transform=TRANSFORM)
    return cases


@contextlib.contextmanager
def environment_of(system: str) -> Any:
    """Start a cluster for the body; yields what a command needs to run on it."""
    if system == EMBEDDED:
        yield {}
        return
    num_nodes, cpus = SHAPES[system]
    with RayNodes(num_nodes, cpus_per_node=cpus) as nodes:
        yield nodes.environment


def run(case: Case, name: str, env: Mapping[str, str], slice_rows: int) -> dict[str, float]:
    """Run a job once; return its rows/s."""
    report = run_job(
        case,
        name,
        env,
        model={"runtime": "eager", **case.model},
        run={"reuse": "off", "slice_rows": slice_rows},
        resources={"max_actors": CPUS},
    )
    seconds = {"streaming": report["streaming_wall_s"], "steady": working_s(report)}
    figures = {name: round(case.num_rows / value, 1) for name, value in seconds.items()}
    return {"whole": round(report["whole_rows_per_s"], 1), **figures}


if __name__ == "__main__":
    main()
