"""Measure row keys: what they cost to write and to look up, by their number.

    python tests/bench/keys.py [--keys 1000000 10000000] [--page FILE]

Two processes write the hashes of a version from staged slices, and two others, who share the node
cache as readers of a node do, look up as many new rows, of which one in ten is new. Seconds are of
all that is done, the fetching of the files too; memory is the sum of what each process had at most.
`--page` writes the table, with what a billion keys would take by it. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.runs.published import encode

from pipeline.commit.keys.key_index import UNKNOWN, KeyIndex
from pipeline.commit.keys.meta import About, VersionKeys
from pipeline.commit.keys.row_keys import BUCKET_ROWS, CHUNK_ROWS, KeyWriter, write_buckets
from pipeline.commit.parts.compaction import SizedSlice
from pipeline.core.schema import ERROR, INPUT_HASH
from pipeline.core.slices import SliceKey
from pipeline.planning.carried import Source, no_runs
from pipeline.storage.store import Store

PROCESSES = 2
SLICE_ROWS = 32_768
PART_ROWS = 1_000_000
ROWS_PER_CALL = 2_048
"""As many as a slice of texts has."""
BILLION = 10**9
Hashes = npt.NDArray[np.uint8]


def hashes_of(index: int, num_rows: int, seed: int = 1) -> Hashes:
    """Hashes of a slice, uint8 (N, 16)."""
    return np.random.default_rng([seed, index]).integers(0, 256, (num_rows, 16), np.uint8)


def rows_of(num_keys: int) -> list[int]:
    """Rows of each slice."""
    return [min(SLICE_ROWS, num_keys - first) for first in range(0, num_keys, SLICE_ROWS)]


def stage(store: Store, num_keys: int) -> list[SizedSlice]:
    slices = []
    for index, num_rows in enumerate(rows_of(num_keys)):
        packed = pa.py_buffer(hashes_of(index, num_rows).tobytes())
        column = pa.Array.from_buffers(pa.binary(16), num_rows, [None, packed])
        data = encode(pa.table({ERROR: pa.nulls(num_rows, pa.string()), INPUT_HASH: column}))
        store.put(path := f"staged/{index:06d}", data)
        slices.append((SliceKey(index, 0, num_rows, is_last=True), path, float(len(data))))
    return slices


def peak_mib(_: int = 0) -> tuple[int, float]:
    """Return this process and its most memory; waits, so that each process of a pool answers."""
    time.sleep(0.2)
    status = Path("/proc/self/status").read_text()
    return os.getpid(), int(status.partition("VmHWM:")[2].split()[0]) / 1024


class Workers:
    """Two processes that do what a run does with Ray tasks, and the memory that they took."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(PROCESSES, mp_context=context)
        list(self._pool.map(peak_mib, range(PROCESSES)))  # started, imported

    def run(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        started = [self._pool.submit(function, *arguments) for arguments in calls]
        return [each.result() for each in started]

    def close(self) -> float:
        """Return the MiB of all processes at most."""
        peaks = dict(self._pool.map(peak_mib, range(PROCESSES * 4)))
        self._pool.shutdown()
        return sum(peaks.values())


def look_up(keys: VersionKeys, indices: Sequence[int], rows: Sequence[int]) -> tuple[int, float]:
    """Look up the new rows of some slices; return how many were known, and the seconds."""
    index, num_known, seconds = KeyIndex(keys), 0, 0.0
    for number in indices:
        asked = hashes_of(number, rows[number])
        is_new = np.arange(len(asked)) % 10 == 0
        asked[is_new] = hashes_of(number, int(is_new.sum()), seed=2)
        asked = np.random.default_rng(number).permutation(asked)
        started = time.perf_counter()
        for first in range(0, len(asked), ROWS_PER_CALL):
            found = index.find(asked[first : first + ROWS_PER_CALL])
            num_known += int((found != UNKNOWN).sum())
        seconds += time.perf_counter() - started
    return num_known, seconds


def measure(num_keys: int, folder: Path) -> dict[str, float]:
    store, rows = Store(str(folder / "out")), rows_of(num_keys)
    slices = stage(store, num_keys)
    part_rows = tuple(min(PART_ROWS, num_keys - first) for first in range(0, num_keys, PART_ROWS))
    writer = KeyWriter(store, "keys", "spilled", part_rows, {})
    workers = Workers()
    started = time.perf_counter()
    files = write_buckets(writer, slices, no_runs(), workers.run)
    write_s, write_mib = time.perf_counter() - started, workers.close()
    about, source = About("key", "settings", "content"), Source(None, 1, "token")
    keys = VersionKeys(store, source, "keys", about, part_rows, files, writer.num_buckets)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    workers = Workers()
    started = time.perf_counter()
    chunks = [range(number, len(rows), PROCESSES) for number in range(PROCESSES)]
    found = workers.run(partial(look_up, keys), [(chunk, rows) for chunk in chunks])
    look_up_s, look_up_mib = max(seconds for _, seconds in found), workers.close()
    num_new = sum(len(range(0, num_rows, 10)) for num_rows in rows)
    assert sum(known for known, _ in found) == num_keys - num_new
    return {
        "keys": num_keys,
        "buckets": writer.num_buckets,
        "write_s": write_s,
        "look_up_s": look_up_s,
        "write_mib": write_mib,
        "look_up_mib": look_up_mib,
        "bytes_per_key": sum(file.size_bytes for file in files.values()) / num_keys,
        "spilled_bytes_per_key": sum(f.size_bytes for f in store.list_files("spilled")) / num_keys,
        "cached_bytes_per_key": _size(folder / "cache") / num_keys,
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.npy"))


def page(results: Sequence[dict[str, float]]) -> str:
    """The table, and what a billion keys would take by its last line."""
    last = results[-1]
    keys, buckets = last["keys"], 1 << (-(-BILLION // BUCKET_ROWS) - 1).bit_length()
    chunks = -(-BILLION // CHUNK_ROWS)
    core_h = {
        name: PROCESSES * last[f"{name}_s"] * BILLION / keys / 3600 for name in ("write", "look_up")
    }
    gb = {
        name: last[f"{name}bytes_per_key"] for name in ("", "spilled_", "cached_")
    }  # a billion bytes per byte of a key
    rows = [
        f"| {each['keys']:,.0f} | {each['buckets']:.0f} | {each['write_s']:.1f} | "
        f"{each['look_up_s']:.1f} | {each['write_mib']:,.0f} | {each['look_up_mib']:,.0f} | "
        f"{each['bytes_per_key']:.2f} |"
        for each in results
    ]
    return "\n".join(
        [
            "# Row keys",
            "",
            f"Written, and looked up for as many new rows, by {PROCESSES} processes on {PROCESSES} "
            "cores (`python tests/bench/keys.py`).",
            "One in ten of the new rows is new.",
            "",
            "| keys | files | write s | look up s | write MiB | look up MiB | bytes per key |",
            "|---:|---:|---:|---:|---:|---:|---:|",
            *rows,
            "",
            "## A billion, computed",
            "",
            f"By the line of {keys:,.0f}: work per key stays, for a task's memory is that of a "
            "chunk or of a file.",
            "",
            "| what | how much |",
            "|---|---|",
            f"| files | {buckets:,} of {BILLION / buckets:,.0f} keys, {gb['']:.1f} GB |",
            f"| written in | {core_h['write']:.1f} core hours, {chunks:,} + {buckets:,} tasks |",
            f"| looked up for a billion new rows in | {core_h['look_up']:.1f} core hours |",
            f"| laid down meanwhile | {gb['spilled_']:.1f} GB, {chunks * buckets:,} reads |",
            f"| node cache | {gb['cached_']:.1f} GB on each node that looks up |",
            f"| memory of a task | as above: {last['write_mib'] / PROCESSES:,.0f} MiB |",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure row keys.")
    parser.add_argument("--keys", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    results = []
    for num_keys in options.keys:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(num_keys, Path(folder)))
        print("  ".join(f"{name} {value:,.2f}" for name, value in results[-1].items()), flush=True)
    if options.page:
        options.page.write_text(page(results))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
