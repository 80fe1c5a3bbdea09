"""Measure rows/s and memory as short texts grow: `python tests/bench/text_rows.py 10000 100000`.

Texts of 3 to 8 words through a tiny encoder with random weights, so that what is measured is the
pipeline itself. Each size runs once. Starting up costs the same for any number of rows, so the
costs that must not change are `us_per_row`, of the second half of the rows, and `more_us_per_row`:
of the rows that a size has more than the one before, by the time of the whole command. Peaks are of
the driver and of every kind of process that Ray starts; `own` leaves out what a process shares with
others. `ray::_call` are the tasks that merge slices into parts: each holds one encoded part, so
their peak grows with the rows until a part has `sink.target_part_mib`, and no further: 200,000 rows
took 297 MiB of their own with 4 MiB a part, 340 MiB with 128. Memory that Arrow holds but does not
use is no part of it: to release it after each piece that is read changes nothing. Prints a line a
size, and JSON last.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from linear import run_measured
from machine import machine, today
from systems import staged_slices, steady_of

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support/toys"))
from support.models.snapshots import WORDS, make_snapshot
from support.runs.cli import write_job

SIZES = (10_000, 100_000, 1_000_000)
_GROUP_ROWS = 10_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sizes", nargs="*", type=int, default=list(SIZES))
    sizes = sorted(parser.parse_args().sizes)
    results = []
    with tempfile.TemporaryDirectory() as name:
        model = make_snapshot(Path(name) / "model", "bert", pooling="mean")
        for size in sizes:
            results.append(measure(Path(name) / str(size), size, model))
            print("  ".join(f"{key} {value}" for key, value in results[-1].items()), flush=True)
    for before, found in itertools.pairwise(results):
        more_s = found["wall_s"] - before["wall_s"]
        found["more_us_per_row"] = round(1e6 * more_s / (found["rows"] - before["rows"]), 1)
        print(f"{found['rows']} rows: {found['more_us_per_row']} us for each row more", flush=True)
    print(json.dumps({"date": today(), "machine": machine(), "results": results}))


def measure(folder: Path, num_rows: int, model: Path) -> dict[str, Any]:
    (folder / "in").mkdir(parents=True)
    write_texts(folder / "in" / "texts.parquet", num_rows)
    source = {"uri": str(folder / "in"), "format": "parquet", "text_column": "text"}
    job = write_job(
        folder / "job.yaml",
        source,
        str(folder / "out"),
        model={"path": str(model)},
        transform=None,
        resources=None,
    )
    found = run_measured(job)
    steady = steady_of(staged_slices(folder / "out"))
    return {"us_per_row": steady and round(1e6 / steady, 1), **found}


def write_texts(path: Path, num_rows: int) -> None:
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())])) as writer:
        texts = short_texts(seed=1)
        for first in range(0, num_rows, _GROUP_ROWS):
            size = min(_GROUP_ROWS, num_rows - first)
            writer.write_table(pa.table({"text": list(itertools.islice(texts, size))}))


def short_texts(seed: int) -> Iterator[str]:
    """Yield texts of 3 to 8 words that the encoder's tokenizer knows, without end."""
    chosen = random.Random(seed)
    while True:
        yield " ".join(chosen.choices(WORDS, k=chosen.randint(3, 8)))


if __name__ == "__main__":
    main()
