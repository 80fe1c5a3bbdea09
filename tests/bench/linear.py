"""Measure rows/s as rows grow: `python tests/bench/linear.py 1000 10000 100000`.

A cheap model over photos that repeat, so that what is measured is the pipeline itself. Starting up
costs the same for any number of rows, so the rate that must not change is that of the rows which
one size has more than the one before: `more_rows_per_s`, by the median time of the whole command.
A few thousand rows take little beside starting up, so they are run often, and the sizes take
turns: a machine that slows down slows all of them. The resident peaks are of the driver and of
every kind of process that Ray starts; `own` leaves out what a process shares with others (Ray's
object store). Prints a line a size, then the spread of the rates, and JSON last.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import huge
import pyarrow as pa
import pyarrow.parquet as pq
from machine import machine, today
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support/toys"))
from support.inputs.photos import photo_rows
from support.runs.cli import command, environment, working, write_job

SIZES = (1_000, 10_000, 100_000)
NUM_PHOTOS = 16
_FEW_ROWS = 10_000
"""So many rows or fewer run in every round, for a tenth of a second counts; more in each third."""
_ROUNDS = 15
_GROUP_ROWS = 1_000
_SIDE_PX = 128
_EVERY_S = 0.25


def make_input(path: Path, num_rows: int) -> None:
    """Write rows that take a few small photos in turn."""
    images = [small_jpeg(photo.data) for photo in photo_rows(NUM_PHOTOS, seed=1)]
    schema = pa.schema([("image", pa.binary())])
    with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
        for first in range(0, num_rows, _GROUP_ROWS):
            rows = range(first, min(first + _GROUP_ROWS, num_rows))
            column = pa.array([images[row % NUM_PHOTOS] for row in rows], pa.binary())
            writer.write_table(pa.table({"image": column}, schema=schema))


def small_jpeg(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        small = image.convert("RGB")
        small.thumbnail((_SIDE_PX, _SIDE_PX))
        small.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def measure(folder: Path, num_rows: int) -> dict[str, Any]:
    (folder / "in").mkdir(parents=True)
    make_input(folder / "in" / "rows.parquet", num_rows)
    source = {"uri": str(folder / "in"), "format": "parquet"}
    job = write_job(folder / "job.yaml", source, str(folder / "out"))
    return run_measured(job)


def run_measured(job: str) -> dict[str, Any]:
    """Run a job to its end, and sample the memory of its processes."""
    peaks: dict[str, list[float]] = {}
    started = time.perf_counter()
    process = subprocess.Popen(
        command("run", job, "--json", "--quiet"), env=environment(), stdout=subprocess.PIPE
    )
    driver = working(process)
    while process.poll() is None:
        huge.sample(driver, peaks)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_EVERY_S)
    wall_s = time.perf_counter() - started
    output = process.stdout.read() if process.stdout else b""
    if process.returncode:
        sys.exit(f"{job}: the run ended with exit {process.returncode}")
    report = json.loads(output.splitlines()[-1])
    return {
        "rows": report["rows"]["computed"],
        "rows_per_s": round(report["rows_per_s"], 1),
        "streaming_s": round(report["streaming_wall_s"], 2),
        "wall_s": round(wall_s, 2),
        "peaks_mib": by_kind(peaks),
    }


def by_kind(peaks: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """The driver and what Ray started; a process is called after its class, whatever it runs."""
    found: dict[str, dict[str, float]] = {}
    for name, (rss, own) in sorted(peaks.items()):
        if name == "driver" or name.startswith("ray::"):
            seen = found.setdefault(name.partition(".")[0], {"rss": 0.0, "own": 0.0})
            seen["rss"] = max(seen["rss"], round(rss, 1))
            seen["own"] = max(seen["own"], round(own, 1))
    return found


def measure_in_turn(folder: Path, sizes: list[int]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {size: [] for size in sizes}
    for index in range(_ROUNDS):
        for size in sizes:
            if size <= _FEW_ROWS or index % 3 == 1:
                with tempfile.TemporaryDirectory(dir=folder) as name:
                    found[size].append(measure(Path(name), size))
    return found


def median_run(runs: list[dict[str, Any]]) -> dict[str, Any]:
    walls = [run["wall_s"] for run in runs]
    middle = statistics.median_low(walls)
    return {**next(run for run in runs if run["wall_s"] == middle), "walls_s": walls}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sizes", nargs="*", type=int, default=list(SIZES))
    sizes = sorted(parser.parse_args().sizes)
    with tempfile.TemporaryDirectory() as name:
        results = [median_run(runs) for runs in measure_in_turn(Path(name), sizes).values()]
    for before, found in itertools.pairwise(results):
        more_s = found["wall_s"] - before["wall_s"]
        found["more_rows_per_s"] = round((found["rows"] - before["rows"]) / more_s, 1)
    for found in results:
        print("  ".join(f"{key} {value}" for key, value in found.items()))
    rates = [found["more_rows_per_s"] for found in results[1:]] or [1.0]
    spread_pct = round(100 * (max(rates) - min(rates)) / max(rates), 1)
    print(f"spread {spread_pct} % of the fastest")
    document = {"date": today(), "machine": machine(), "spread_pct": spread_pct}
    print(json.dumps({**document, "results": results}))


if __name__ == "__main__":
    main()
