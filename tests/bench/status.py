"""Measure how long `pipeline status` takes over many partitions, and how many requests it makes.

    python tests/bench/status.py [--store local|s3] [--partitions 1000 10000] [--staged 10]

The output is made first: of each partition a manifest, a lease with its last words, a report and
staged slices. Aim: 1,000 partitions on a local S3 server within 5 s, two requests for each,
listings included. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime as dt
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support/toys"))

from support.runs.published import publish_rows
from support.servers.s3server import S3Server

from pipeline.commit.heartbeat import Heartbeat
from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest
from pipeline.runs.partitions.survey import survey
from pipeline.storage.interface import Page
from pipeline.storage.object_store import ObjectStore
from pipeline.storage.store import Store

PUT_THREADS = 32
FIRST_DAY = dt.date(2000, 1, 1)


@contextlib.contextmanager
def empty_store(kind: str) -> Iterator[Store]:
    with contextlib.ExitStack() as stack:
        if kind == "local":
            yield Store(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            yield stack.enter_context(S3Server()).store()


def fill(store: Store, num_partitions: int, num_staged: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        manifest = publish_rows(Store(folder))
    with ThreadPoolExecutor(PUT_THREADS) as pool:
        list(pool.map(partial(_put_one, store, manifest, num_staged), range(num_partitions)))


def _put_one(store: Store, like: Manifest, num_staged: int, number: int) -> None:
    name, run_id = f"date={FIRST_DAY + dt.timedelta(days=number)}", "20261124T020000Z-1a2b3c4d"
    layout, said = Layout(name), Heartbeat(run_id=run_id, released=True, exit_code=0)
    manifest = dataclasses.replace(like, partition=name, run_id=run_id)
    store.put(layout.log_entry(1), manifest.to_json())
    store.put(layout.lease(1), b"{}")
    store.put(layout.heartbeat(1), json.dumps(dataclasses.asdict(said)).encode())
    for file in ("report.json", "report.html"):
        store.put(layout.report(run_id, file), b"{}")
    for slice_ in range(num_staged):
        store.put(f"{layout.staging('f')}/{slice_:06d}-000000000-000000256z-a.parquet", b"")


def measure(store: Store) -> dict[str, Any]:
    reads, read = Counter[str](), Store.read_many
    listings, list_page = Counter[str](), ObjectStore._page

    def counted(self: Store, paths: Sequence[str]) -> dict[str, bytes | Exception]:
        reads.update(path.split("/")[1] for path in paths)
        return read(self, paths)

    def listed(self: ObjectStore, folder: str, ask: Any) -> Page:
        listings[folder] += 1
        return list_page(self, folder, ask)

    survey(store, ["date=1999-01-01"])  # opens connections
    Store.read_many, ObjectStore._page = counted, listed  # type: ignore[method-assign]
    begun, cpu = time.perf_counter(), time.process_time()
    found = survey(store)
    wall_s, cpu_s = time.perf_counter() - begun, time.process_time() - cpu
    Store.read_many, ObjectStore._page = read, list_page  # type: ignore[method-assign]
    states = Counter(each.state for each in found)
    return {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "most_reads": max(reads.values()),
        "requests_per_partition": (reads.total() + listings.total()) / len(found),
        "states": dict(states),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure pipeline status.")
    parser.add_argument("--store", choices=["local", "s3"], default="s3")
    parser.add_argument("--partitions", type=int, nargs="+", default=[1000])
    parser.add_argument("--staged", type=int, default=10, help="Staged slices of each partition.")
    options = parser.parse_args()
    results = []
    for num_partitions in options.partitions:
        with empty_store(options.store) as store:
            fill(store, num_partitions, options.staged)
            for _ in range(3):
                result = {"partitions": num_partitions, **measure(store)}
                results.append({"store": options.store, **result})
                print(results[-1], flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
