"""Let one run go on and on: `python tests/bench/soak.py --minutes 30`. It must not grow.

The real command classifies photos with EfficientNet-Lite0 until it is told to stop. Meanwhile the
memory of the driver, of the workers and of Ray's own processes and their open file descriptors are
sampled. `pss` counts what processes share once, and with it Ray's object store, which fills up to
its size and then stays; `own` is what a process shares with nobody. Ray ends workers that idle and
starts others, so memory is judged over the processes that last. Prints a line a minute, and JSON
last; exit 1 where their own memory grows by a MiB or more for 1,000 images, or where the number of
processes or of descriptors grows.
"""

from __future__ import annotations

import argparse
import json
import re
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
from support.runs.cli import command, environment, working, write_job

NUM_PHOTOS, GROUP_ROWS = 16, 512
EVERY_S = 5.0
MIB = 2**20
MAX_MIB_PER_1000 = 1.0
WARM_UP = 0.4
"""The first share of the samples, in which caches and allocators fill."""
_STAGED = re.compile(r"(\d{6,})-(\d{9,})-(\d{9,})z?-[0-9a-z]+\.parquet$")


@dataclass(frozen=True)
class Look:
    """One look at one process."""

    kind: str
    pss_mib: float
    own_mib: float
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
        for _ in range(-(-num_rows // GROUP_ROWS)):
            writer.write_table(table)


def take_sample(driver: psutil.Process, out: Path, started_s: float) -> Sample:
    looks = {}
    for process in [driver, *driver.children(recursive=True)]:
        try:
            kind = "driver" if process == driver else kind_of(process.cmdline()[0])
            memory, files = process.memory_full_info(), process.num_fds()
        except (psutil.NoSuchProcess, psutil.ZombieProcess, IndexError):
            continue
        looks[process.pid] = Look(kind, memory.pss / MIB, memory.uss / MIB, files)
    return Sample(time.monotonic() - started_s, num_staged(out), looks)


def kind_of(command_line: str) -> str:
    """Ray calls a worker after its class and what it runs now: only the former stays."""
    name = command_line.split("(")[0].rpartition("/")[2]
    return name.partition(".")[0]


def num_staged(out: Path) -> int:
    """Images whose slices are committed."""
    names = (_STAGED.search(path.name) for path in out.glob("_control/*/staging/*/*.parquet"))
    return sum(int(found[3]) - int(found[2]) for found in names if found)


def watch(process: subprocess.Popen[bytes], out: Path, minutes: float) -> list[Sample]:
    """Sample until the time is over, counted from the first finished images on."""
    driver, samples = working(process), []
    started_s = said_s = time.monotonic()
    while process.poll() is None:
        found = take_sample(driver, out, started_s)
        if found.images or samples:
            samples.append(found)
        else:
            started_s = time.monotonic()
        if samples and time.monotonic() - said_s >= 60:
            said_s = time.monotonic()
            looks = sorted(found.looks.values(), key=lambda look: look.kind)
            own = "  ".join(f"{look.kind} {look.own_mib:.0f}" for look in looks)
            print(f"{found.at_s:.0f} s  {found.images} images  own MiB: {own}", flush=True)
        if samples and found.at_s >= 60 * minutes:
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
    kinds = {pid: settled[0].looks[pid].kind for pid in lasting}
    by_kind = {
        kind: slope_per_1000(
            settled,
            [sum(s.looks[pid].own_mib for pid in kinds if kinds[pid] == kind) for s in settled],
        )
        for kind in sorted(set(kinds.values()))
    }
    pss = [sum(look.pss_mib for look in sample.looks.values()) for sample in settled]
    files = [sum(look.descriptors for look in sample.looks.values()) for sample in settled]
    figures: dict[str, Any] = {
        "images": samples[-1].images,
        "minutes": round(samples[-1].at_s / 60, 1),
        "samples": len(settled),
        "own_mib_per_1000": round(sum(by_kind.values()), 3),
        "own_mib_per_1000_by_kind": {kind: round(slope, 3) for kind, slope in by_kind.items()},
        "pss_mib": ends(pss),
        "pss_mib_per_1000": round(slope_per_1000(settled, pss), 3),
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--most-rows-per-s", type=int, default=600, help="makes the input so long")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name), Path(name) / "out"
        (folder / "in").mkdir()
        num_rows = int(60 * options.minutes * options.most_rows_per_s)
        make_input(folder / "in" / "rows.parquet", num_rows)
        source = {"uri": str(folder / "in"), "format": "parquet"}
        model = {"name": "efficientnet-lite0"}
        job = write_job(folder / "job.yaml", source, str(out), model=model, transform=None)
        process = subprocess.Popen(
            command("run", job, "--quiet"), env=environment(), stderr=subprocess.PIPE
        )
        samples = watch(process, out, options.minutes)
        _, stderr = process.communicate()
    if process.returncode != 6:
        sys.exit(
            f"the run ended by itself with exit {process.returncode}: {stderr.decode()[-500:]}"
        )
    figures = judge(samples)
    print(json.dumps({"date": today(), "machine": machine(), **figures}))
    sys.exit(0 if figures["ok"] else 1)


if __name__ == "__main__":
    main()
