"""Measure the memory of a run over one huge row group: `python tests/bench/huge.py 2048` (MiB).

The file is written with pyarrow's defaults, images of 100 kB, in one row group. Prints the peak of
every kind of process, resident and without what it shares with others, and JSON last.
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
from torchvision.io import encode_png

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support/toys"))
from support.runs.cli import command, environment, working, write_job

SAMPLE_EVERY_S = 0.1
MIB = 2**20
SIDE_PX = 182


def make_input(path: Path, size_mib: int) -> int:
    """Write images of noise, which nothing compresses; return their number."""
    rng = np.random.default_rng(1)
    noise = torch.from_numpy(rng.integers(0, 256, (64, 3, SIDE_PX, SIDE_PX), np.uint8))
    images = [encode_png(image).numpy().tobytes() for image in noise]
    num_rows = size_mib * MIB // len(images[0])
    rows = pa.table(
        {"image": pa.array([images[i % 64] for i in range(num_rows)], pa.large_binary())}
    )
    pq.write_table(rows, path, row_group_size=num_rows, use_dictionary=False)
    assert pq.ParquetFile(path).num_row_groups == 1
    return num_rows


def sample(driver: psutil.Process, peaks: dict[str, list[float]]) -> None:
    for process in [driver, *driver.children(recursive=True)]:
        try:
            name = process.cmdline()[0] if process != driver else "driver"
            memory = process.memory_info()
        except (psutil.NoSuchProcess, IndexError):
            continue
        kind = name.split("(")[0].rpartition("/")[2]
        seen = peaks.setdefault(kind, [0.0, 0.0])
        seen[0] = max(seen[0], memory.rss / MIB)
        seen[1] = max(seen[1], (memory.rss - memory.shared) / MIB)


def main() -> None:
    size_mib = int(sys.argv[1]) if len(sys.argv) > 1 else 2048
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        num_rows = make_input(folder / "in" / "huge.parquet", size_mib)
        size_bytes = (folder / "in" / "huge.parquet").stat().st_size
        source = {"uri": str(folder / "in"), "format": "parquet"}
        job = write_job(folder / "job.yaml", source, str(folder / "out"))
        started = time.perf_counter()
        process = subprocess.Popen(
            command("run", job, "--json", "--quiet"), env=environment(), stdout=subprocess.PIPE
        )
        peaks: dict[str, list[float]] = {}
        driver = working(process)
        while process.poll() is None:
            sample(driver, peaks)
            time.sleep(SAMPLE_EVERY_S)
        output = process.stdout.read() if process.stdout else b""
        report = json.loads(output.splitlines()[-1])
    for kind, (resident, own) in sorted(peaks.items()):
        print(f"{kind:<40} resident {resident:7.0f} MiB   own {own:7.0f} MiB")
    figures = {
        "file_mib": round(size_bytes / MIB),
        "rows": num_rows,
        "predicted": report["rows"]["predicted"],
        "wall_s": round(time.perf_counter() - started, 1),
        "most_own_mib": round(max(own for _, own in peaks.values())),
        "most_resident_mib": round(max(resident for resident, _ in peaks.values())),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
