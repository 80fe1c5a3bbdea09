"""Measure how much memory a run takes as its rows grow: `python tests/bench/memory.py 5000 20000`.

Runs the real command over tiny images in one Parquet file and samples the resident memory of the
driver and of the model actors. Prints a line a size, and one JSON document last.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from machine import machine, today
from support.runs.cli import command, environment, working, write_job
from torchvision.io import encode_png

SAMPLE_EVERY_S = 0.25
MIB = 2**20


def make_input(path: Path, num_rows: int) -> None:
    rng = np.random.default_rng(1)
    images = [
        encode_png(torch.from_numpy(rng.integers(0, 255, (3, 8, 8), np.uint8))).numpy().tobytes()
        for _ in range(64)
    ]
    pq.write_table(pa.table({"image": [images[i % 64] for i in range(num_rows)]}), path)


def measure(folder: Path, num_rows: int) -> dict[str, float]:
    (folder / "in").mkdir(parents=True)
    make_input(folder / "in" / "rows.parquet", num_rows)
    source = {"uri": str(folder / "in"), "format": "parquet"}
    job = write_job(folder / "job.yaml", source, str(folder / "out"))
    started = time.perf_counter()
    process = subprocess.Popen(
        command("run", job, "--json", "--quiet"), env=environment(), stdout=subprocess.PIPE
    )
    driver = working(process)
    peaks: dict[str, int] = {"driver": 0, "actor": 0}
    while process.poll() is None:
        for kind, rss in sample(driver):
            peaks[kind] = max(peaks[kind], rss)
        time.sleep(SAMPLE_EVERY_S)
    output = process.stdout.read() if process.stdout else b""
    report = json.loads(output.splitlines()[-1])
    return {
        "rows": num_rows,
        "predicted": report["rows"]["predicted"],
        "slices": report["slices"]["computed"],
        "driver_peak_mib": round(peaks["driver"] / MIB, 1),
        "actor_peak_mib": round(peaks["actor"] / MIB, 1),
        "rows_per_s": round(report["rows_per_s"], 1),
        "wall_s": round(time.perf_counter() - started, 1),
    }


def sample(driver: psutil.Process) -> list[tuple[str, int]]:
    """Resident bytes of the driver and of each process that holds a model actor."""
    found = []
    try:
        found.append(("driver", driver.memory_info().rss))
        for child in driver.children(recursive=True):
            # Ray names a worker after what it runs.
            if "PredictorActor" in " ".join(child.cmdline()):
                found.append(("actor", child.memory_info().rss))
    except psutil.NoSuchProcess:
        return found
    return found


def main() -> None:
    sizes = [int(size) for size in sys.argv[1:]] or [5000, 20000]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            results.append(measure(Path(folder) / str(size), size))
            print("  ".join(f"{name} {value}" for name, value in results[-1].items()), flush=True)
    print(json.dumps({"date": today(), "machine": machine(), "sizes": results}))


if __name__ == "__main__":
    main()
