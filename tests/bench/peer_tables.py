"""Peers over tables: plain pyarrow batches, a DataLoader loop, and Ray Data as documented.

All write the column `id` and the model's number as Parquet. `plain-tables` is the reference: as
many plain processes as the job has actors, each with its share of the files, the same runtime,
precision, threads and batch; batches come from pyarrow.parquet and are joined by numpy.
"""

from __future__ import annotations

import glob
import time
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from peer_model import CORES, steady_rate
from turns import slowest_s

USUAL_BATCH = 1024
_READ_BYTES = 4 * 2**20
"""What the reference reads, and writes, at once: several batches of the model."""


@dataclass(frozen=True)
class _Share:
    """What one process does."""

    number: int
    files: list[str]
    num_features: int
    weights: str
    out: str
    runtime: str
    precision: str
    batch_rows: int
    num_threads: int


def names_of(num_features: int) -> list[str]:
    """Return the columns of features."""
    return [f"f{index}" for index in range(num_features)]


def _shards(folder: str) -> list[str]:
    return sorted(glob.glob(f"{folder}/*.parquet"))


def _module(num_features: int, weights: str) -> Any:
    from safetensors.torch import load_file
    from tables_model import mlp

    module = mlp(num_features)
    module.load_state_dict(load_file(weights))
    return module.eval()


def plain_tables(
    folder: str,
    name: str,
    weights: str,
    out: str,
    num_features: str,
    runtime: str,
    precision: str,
    batch_rows: str,
    processes: str,
    threads: str,
) -> dict[str, Any]:
    context, count = get_context("spawn"), int(processes)
    files = _shards(folder)
    Path(out).mkdir(parents=True)
    how = (runtime, precision, int(batch_rows), int(threads))
    shares = [
        _Share(index, files[index::count], int(num_features), weights, out, *how)
        for index in range(count)
    ]
    ready, done, go = context.Queue(), context.Queue(), context.Event()
    workers = [context.Process(target=_work, args=(share, ready, done, go)) for share in shares]
    seconds = slowest_s(workers, ready, done, go)
    rows = _rows(out)
    return {"rows": rows, "steady": rows / seconds}


def _rows(out: str) -> int:
    import pyarrow.parquet as pq

    return sum(pq.ParquetFile(path).metadata.num_rows for path in _shards(out))


def _work(share: _Share, ready: Any, done: Any, go: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    pa.set_cpu_count(share.num_threads)
    torch.set_num_threads(share.num_threads)
    run = _runner(share)
    names = names_of(share.num_features)
    read_rows = max(share.batch_rows, _READ_BYTES // (4 * share.num_features))
    schema = pa.schema([("id", pa.int64()), ("value", pa.float32())])
    ready.put(True)
    go.wait()
    started = time.perf_counter()
    with (
        torch.inference_mode(),
        pq.ParquetWriter(f"{share.out}/{share.number}.parquet", schema) as writer,
    ):
        for path in share.files:
            file = pq.ParquetFile(path)
            for batch in file.iter_batches(read_rows, columns=["id", *names]):
                columns = [batch.column(name).to_numpy() for name in names]
                rows, size = np.stack(columns, axis=1), share.batch_rows
                found = [run(rows[at : at + size]) for at in range(0, len(rows), size)]
                table = {"id": batch.column("id"), "value": pa.array(np.concatenate(found))}
                writer.write_table(pa.table(table, schema=schema))
    done.put(time.perf_counter() - started)


def _runner(share: _Share) -> Any:
    """Return what runs a batch, float32 (B, F) to (B,); the last one of a file may be padded."""
    import torch

    from pipeline.inference.runtimes.inference_module import InferenceModule
    from pipeline.inference.runtimes.opening import dtype_of, make_runner
    from pipeline.preprocessing.feature_input import FeatureInput

    kind = dtype_of(share.runtime, share.precision)
    seen = FeatureInput(num_features=share.num_features)
    module = _module(share.num_features, share.weights).to(kind)
    buffer = torch.zeros((share.batch_rows, share.num_features))
    runner = make_runner(
        share.runtime,
        share.precision,
        lambda: InferenceModule(module, seen, kind).eval(),
        {"features": buffer},
        num_threads=share.num_threads,
    )

    def run(rows: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(rows)
        if runner.is_static and len(rows) < share.batch_rows:
            buffer[: len(rows)] = batch
            batch = buffer
        found = runner.run({"features": batch})
        return found.float()[: len(rows), 0].numpy()

    run(np.zeros((share.batch_rows, share.num_features), np.float32))
    return run


class _Rows:
    """A map-style dataset, as the tutorials have it."""

    def __init__(self, folder: str, num_features: int) -> None:
        import pyarrow.parquet as pq

        table = pq.read_table(folder)
        self.ids = table.column("id").to_numpy()
        columns = [table.column(name).to_numpy() for name in names_of(num_features)]
        self.features = np.stack(columns, axis=1)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Any:
        return self.ids[index], self.features[index]


def loader_tables(
    folder: str, name: str, weights: str, out: str, num_features: str, *_: str
) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from torch.utils.data import DataLoader

    module = _module(int(num_features), weights)
    started = time.time()
    rows = _Rows(folder, int(num_features))
    ids, found = [], []
    with torch.inference_mode():
        for some, features in DataLoader(rows, batch_size=USUAL_BATCH, num_workers=CORES):
            found.append(module(features)[:, 0].numpy())
            ids.append(some.numpy())
    busy_s = time.time() - started
    Path(out).mkdir(parents=True)
    table = pa.table({"id": np.concatenate(ids), "value": np.concatenate(found)})
    pq.write_table(table, f"{out}/0.parquet")
    # It reads all rows before the first is predicted: no part of them has its share of reading.
    return {"rows": len(rows), "steady": len(rows) / busy_s}


def ray_tables(
    folder: str, name: str, weights: str, out: str, num_features: str, *_: str
) -> dict[str, Any]:
    import pyarrow.parquet as pq
    import ray as ray_
    import torch

    size, names = int(num_features), names_of(int(num_features))

    class Model:
        def __init__(self) -> None:
            torch.set_num_threads(1)
            self.module = _module(size, weights)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            rows = torch.from_numpy(np.stack([batch[name] for name in names], axis=1))
            with torch.inference_mode():
                found = self.module(rows)[:, 0].numpy()
            return {"id": batch["id"], "value": found, "at": np.full(len(found), time.time())}

    # One slot more than cores: reading and writing need one beside the actors.
    ray_.init(num_cpus=CORES + 1, logging_level="ERROR", log_to_driver=False)
    ray_.data.DataContext.get_current().enable_progress_bars = False
    (
        ray_.data.read_parquet(folder)
        .map_batches(Model, batch_size=USUAL_BATCH, concurrency=CORES)
        .write_parquet(out)
    )
    ends = pq.read_table(out, columns=["at"]).column("at").to_numpy()
    return {"rows": len(ends), "steady": steady_rate(ends)}
