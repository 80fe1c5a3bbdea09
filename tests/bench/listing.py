"""Measure what it costs to list and plan many small objects: seconds and memory by their number.

    python tests/bench/listing.py [--store local|s3] [--objects 10000 50000 200000]

The objects are made first: 64 folders of empty images (on s3 at some 500 a second). Each size is
measured in a process of its own; its memory is what it grew by. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support/toys"))

from models import LABELS, TRANSFORM
from support.servers.s3server import S3Server

from pipeline.commit.plan_store import plan_from_json, plan_to_json
from pipeline.job.reading.loader import parse_job
from pipeline.planning.plan import make_plan
from pipeline.runs.preparing.prepare import job_model
from pipeline.sources.inputs import list_inputs
from pipeline.storage.store import Store

FOLDERS = 64
PUT_THREADS = 32


@contextlib.contextmanager
def filled_store(kind: str, num_objects: int) -> Iterator[Store]:
    """A store with many empty images."""
    with contextlib.ExitStack() as stack:
        if kind == "local":
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            store = Store(f"{folder}/images")
            for path in image_paths(num_objects):
                target = Path(store.url(path))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.touch()
        else:
            server = stack.enter_context(S3Server())
            store = server.store()
            with ThreadPoolExecutor(PUT_THREADS) as pool:
                list(pool.map(lambda path: store.put(path, b""), image_paths(num_objects)))
        yield store


def image_paths(num_objects: int) -> Iterator[str]:
    for number in range(num_objects):
        yield f"camera-{number % FOLDERS:02d}/2026-11-24/photo-{number:08d}.jpg"


def measure(uri: str, storage_options: dict[str, Any]) -> dict[str, float]:
    """List and plan once in this process."""
    source = {"uri": uri, "format": "images", "storage_options": storage_options}
    document = {
        "source": source,
        "model": {"factory": "models:colours", "labels": LABELS},
        "transform": TRANSFORM,
        "sink": {"uri": "out"},
    }
    job = parse_job(document, date=dt.date(2026, 11, 24), origin="benchmark")
    spec = job_model(job, ["models"])
    Store(uri, storage_options).exists("nothing")  # connected, imported
    before_mib = peak_mib()
    started = time.perf_counter()
    inputs = list_inputs(job.source, max_extent_rows=256)
    listed = time.perf_counter()
    listed_mib = peak_mib()
    plan = make_plan(job, inputs, spec, batch_size=32)
    planned = time.perf_counter()
    data = plan_to_json(plan, "token")
    written = time.perf_counter()
    del inputs
    again = plan_from_json(data, plan.fingerprint)
    read = time.perf_counter()
    assert again.num_rows == plan.num_rows
    return {
        "objects": plan.num_rows,
        "list_s": listed - started,
        "plan_s": planned - listed,
        "to_json_s": written - planned,
        "from_json_s": read - written,
        "list_mib": listed_mib - before_mib,
        "all_mib": peak_mib() - before_mib,
        "json_mib": len(data) / 2**20,
        "json_bytes_per_object": len(data) / plan.num_rows,
    }


def peak_mib() -> float:
    # Not ru_maxrss: that of the process that started this one survives the start of a program.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure_apart(store: Store) -> dict[str, float]:
    """Measure in a process whose memory is nobody else's."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure"],
        input=json.dumps([store.uri, dict(store.storage_options)]),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure listing and planning.")
    parser.add_argument("--store", choices=["local", "s3"], default="local")
    parser.add_argument("--objects", type=int, nargs="+", default=[10_000, 50_000, 200_000])
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*json.load(sys.stdin))))
        return
    results = []
    for num_objects in options.objects:
        with filled_store(options.store, num_objects) as store:
            results.append({"store": options.store, **measure_apart(store)})
        print(
            "  ".join(f"{name} {_short(value)}" for name, value in results[-1].items()), flush=True
        )
    print(json.dumps(results))


def _short(value: float | str) -> str:
    return f"{value:.2f}" if isinstance(value, float) else f"{value}"


if __name__ == "__main__":
    main()
