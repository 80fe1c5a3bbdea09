"""How many tasks of a stage are on a node at once, on a Ray whose first node alone is up.

    python crowding.py CORES LATER

A node of CORES logical processors runs what was divided for LATER, the largest that an autoscaler
would make. Prints the most readers, decoders and writers that worked at once, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

SLICES, WORK_S = 60, 0.2
FOLDER = "CROWDING_FOLDER"
EVENTS = "events"


@contextmanager
def noted(stage: str, seconds: float) -> Iterator[None]:
    """Note when the body begins and ends; it works for some seconds."""
    path = Path(os.environ[FOLDER], f"{os.getpid()}.{EVENTS}")
    began = time.time()
    time.sleep(seconds)
    yield
    with path.open("a") as file:
        file.write(json.dumps([stage, began, time.time()]) + "\n")


def decode(block: pa.Table) -> pa.Table:
    """Stand for a decoder."""
    with noted("decoder", WORK_S):
        return block


def write(block: pa.Table) -> pa.Table:
    """Stand for a writer."""
    with noted("writer", WORK_S / 4):
        return block


class Actor:
    """Stands for an actor of the pool."""

    def __call__(self, block: pa.Table) -> pa.Table:
        return block


def source() -> Any:
    """Stand for the shards: one slice each."""
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    def read() -> list[pa.Table]:
        with noted("reader", WORK_S / 4):
            return [pa.table({"x": [b"0" * 10_000]})]

    class Slices(Datasource):  # type: ignore[misc]
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
            known = BlockMetadata(num_rows=1, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(read, known) for _ in range(SLICES)]

    return Slices()


def most_at_once(folder: Path) -> dict[str, int]:
    """Return how many of each kind worked at the same time, at most."""
    lines = (line for path in folder.glob(f"*.{EVENTS}") for line in path.read_text().splitlines())
    times: dict[str, list[tuple[float, int]]] = {}
    for stage, began, ended in map(json.loads, lines):
        times.setdefault(stage, []).extend([(began, 1), (ended, -1)])
    most = {}
    for stage, changes in times.items():
        now = most[stage] = 0
        for _, change in sorted(changes):
            now += change
            most[stage] = max(most[stage], now)
    return most


def main(cores: int, later: int) -> None:
    """Run the stages on a node of its own."""
    import ray
    from ray.cluster_utils import Cluster

    from pipeline.execution import ray_options
    from pipeline.execution.cluster.connect import _configure_data
    from pipeline.execution.ray_options import reserve_less
    from pipeline.job.job import Resources
    from pipeline.planning.allocation import Hardware, allocate

    fields = {"max_actors": 1, "decode_in": "tasks"}
    hardware = Hardware(1, later, 0, (), (float(cores),), (0.0,))
    allocation = allocate(Resources.model_validate(fields), hardware, cost="image")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.environ |= {FOLDER: folder, "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        cluster = Cluster()
        cluster.add_node(num_cpus=0, include_dashboard=False)
        cluster.add_node(num_cpus=cores, object_store_memory=128 << 20)
        ray.init(address=cluster.address, log_to_driver=False)
        _configure_data()
        if allocation.reserves_cores:
            reserve_less()
        dataset = ray.data.read_datasource(source(), **ray_options.read(allocation, SLICES))
        dataset = dataset.map_batches(decode, **ray_options.preprocess(allocation))
        dataset = dataset.map_batches(Actor, **ray_options.predict(allocation))
        dataset = dataset.map_batches(write, **ray_options.write(allocation))
        for _ in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            pass
        ray.shutdown()
        cluster.shutdown()
        print(json.dumps(most_at_once(Path(folder))))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
