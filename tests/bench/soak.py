"""Run for a long time: `python tests/bench/soak.py --minutes 30`. Memory must not grow.

The real command classifies photos with EfficientNet-Lite0 until it is told to stop. Meanwhile the
memory of the driver, of the workers and of Ray's own processes that each shares with no other, and
their open file descriptors are sampled. Ray ends workers that idle and starts others, so memory is
judged over the processes that last. Prints a line a minute, and JSON last; exit 1 where their
memory grows by a MiB or more for 1,000 images, or where the number of processes or of descriptors
grows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from machine import machine, today
from support.inputs.photos import photo_rows
from support.runs.cli import start, working, write_job

from pipeline.commit.layout import parse_staged_name

NUM_PHOTOS, GROUP_ROWS = 16, 512
EVERY_S = 5.0
MIB = 2**20
MAX_MIB_PER_1000 = 1.0
STOPPED = 6
"""The exit code of a run that was told to stop."""
WARM_UP = 0.4
"""The first share of the samples, in which caches and allocators fill."""


@dataclass(frozen=True)
class Look:
    """One look at one process."""

    name: str
    uss_mib: float
    descriptors: int


@dataclass(frozen=True)
class Sample:
    """One look at all processes of the run, by their ids."""

    at_s: float
    images: int
    looks: dict[int, Look]


def make_input(path: Path, num_rows: int) -> None:
    """Write rows that take a few photos in turn; a dictionary keeps the file small."""
    photos = [photo.data for photo in photo_rows(NUM_PHOTOS, seed=1)]
    group = pa.array([photos[row % NUM_PHOTOS] for row in range(GROUP_ROWS)], pa.binary())
    table = pa.table({"image": group})
    with pq.ParquetWriter(path, table.schema, use_dictionary=True) as writer:
        for first in range(0, num_rows, GROUP_ROWS):
            writer.write_table(table.slice(0, num_rows - first))


def take_sample(driver: psutil.Process, out: Path, started_s: float) -> Sample:
    looks, family = {}, [driver]
    with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
        family += driver.children(recursive=True)
    for process in family:
        try:
            name = "driver" if process == driver else name_of(process.cmdline()[0])
            memory, files = process.memory_full_info(), process.num_fds()
        except (psutil.NoSuchProcess, psutil.ZombieProcess, IndexError):
            continue
        looks[process.pid] = Look(name, memory.uss / MIB, files)
    return Sample(time.monotonic() - started_s, num_staged(out), looks)


def name_of(command_line: str) -> str:
    """Ray calls a worker after its class and what it runs now: only the former stays."""
    name = command_line.split("(")[0].rpartition("/")[2]
    return name.partition(".")[0]


def num_staged(out: Path) -> int:
    """Images whose slices are committed."""
    keys = (parse_staged_name(path.name) for path in out.glob("_control/*/staging/*/*.parquet"))
    return sum(key.num_rows for key in keys if key is not None)


def watch(process: subprocess.Popen[str], out: Path, minutes: float) -> list[Sample]:
    """Sample until the time is over, counted from the first finished images on."""
    driver, samples = working(process), []
    started_s = printed_s = time.monotonic()
    while process.poll() is None:
        sample = take_sample(driver, out, started_s)
        if sample.images or samples:
            samples.append(sample)
        else:
            started_s = time.monotonic()
        if samples and time.monotonic() - printed_s >= 60:
            printed_s = time.monotonic()
            looks = sorted(sample.looks.values(), key=lambda look: look.name)
            line = "  ".join(f"{look.name} {look.uss_mib:.0f}" for look in looks)
            print(f"{sample.at_s:.0f} s  {sample.images} images  own MiB: {line}", flush=True)
        if samples and sample.at_s >= 60 * minutes:
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(EVERY_S)
    return samples


def slope_per_1000(samples: list[Sample], values: list[float]) -> float:
    """Fit a line: how much a value grows for 1,000 images."""
    images = np.array([sample.images for sample in samples], float)
    return float(np.polyfit(images, np.array(values), 1)[0] * 1000)


def judge(samples: list[Sample]) -> dict[str, Any]:
    settled = samples[int(WARM_UP * len(samples)) :]
    lasting = set.intersection(*(set(sample.looks) for sample in settled))
    # Ray renames a worker as it works: it is called what it was at first.
    names = {pid: settled[0].looks[pid].name for pid in lasting}
    slopes = {
        name: slope_per_1000(
            settled,
            [sum(s.looks[pid].uss_mib for pid in names if names[pid] == name) for s in settled],
        )
        for name in sorted(set(names.values()))
    }
    files = [sum(look.descriptors for look in sample.looks.values()) for sample in settled]
    figures: dict[str, Any] = {
        "images": samples[-1].images,
        "minutes": round(samples[-1].at_s / 60, 1),
        "samples": len(settled),
        "own_mib_per_1000": round(sum(slopes.values()), 3),
        "own_mib_per_1000_by_kind": {name: round(slope, 3) for name, slope in slopes.items()},
        "processes": ends([len(sample.looks) for sample in settled]),
        "descriptors": ends(files),
    }
    figures["ok"] = figures["own_mib_per_1000"] < MAX_MIB_PER_1000 and all(
        last <= first * 1.02 + 2 for first, last in (figures["processes"], figures["descriptors"])
    )
    return figures


def ends(values: Sequence[float]) -> tuple[int, int]:
    """The medians of the first and of the last quarter: what comes and goes does not count."""
    quarter = max(1, len(values) // 4)
    return int(np.median(values[:quarter])), int(np.median(values[-quarter:]))


def soak(folder: Path, minutes: float, most_rows_per_s: int) -> dict[str, Any]:
    (folder / "in").mkdir()
    make_input(folder / "in" / "rows.parquet", int(60 * minutes * most_rows_per_s))
    source = {"uri": str(folder / "in"), "format": "parquet"}
    model = {"name": "efficientnet-lite0"}
    job = write_job(folder / "job.yaml", source, str(folder / "out"), model=model, transform=None)
    process = start("run", job, "--quiet")
    samples = watch(process, folder / "out", minutes)
    _, stderr = process.communicate()
    if process.returncode != STOPPED:
        sys.exit(f"the run ended with exit {process.returncode}: {stderr[-500:]}")
    return judge(samples)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--most-rows-per-s", type=int, default=600, help="makes the input so long")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        figures = soak(Path(name), options.minutes, options.most_rows_per_s)
    print(json.dumps({"date": today(), "machine": machine(), **figures}))
    sys.exit(0 if figures["ok"] else 1)


if __name__ == "__main__":
    main()
