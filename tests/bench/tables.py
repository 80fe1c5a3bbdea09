"""Measure rows/s over tables beside peers and the limit: `python tests/bench/tables.py`.

A network of two hidden layers of 256 over a wide table (1,000 features, 500,000 rows) and a tall
one (10 features, 10,000,000 rows), float32, in Parquet files as pyarrow writes them. The systems
take turns, so that a slow minute meets all of them. What is compared:

- `exact`: `pipeline run` in eager fp32.
- `fp32`, `auto`: with what `pipeline tune` chose in fp32, and in any precision.
- `plain-fp32`, `plain-auto`: plain pyarrow batches into what `fp32` and `auto` chose, in as many
  processes, written as Parquet, and nothing around it.
- `loader-tables`: a map-style dataset and a DataLoader with a worker a core.
- `ray-tables`: Ray Data's `read_parquet`, `map_batches` over a pool of actors, `write_parquet`.

`whole` is rows/s of the whole process, `steady` without starting up: ours and Ray Data's by the
second half of the rows, the others' by the time from the first read to the last batch.
`differences` holds our numbers to those of `plain` or a peer, row by row. Prints lines, then one
JSON line, which `--out` writes to a file too; results.py makes a page of it.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from machine import machine, today
from peer_model import CORES
from peer_tables import names_of
from safetensors.torch import save_file
from systems import OURS, Case, Unusable, run_job, run_peer, sections_of
from tables_model import mlp
from tuned import Tuned
from turns import in_turn, summarise, tell, usable

WIDE, TALL = (1_000, 500_000), (10, 10_000_000)
"""Features and rows."""
PLAIN = {"plain-fp32": "fp32", "plain-auto": "auto"}
"""The reference, and whose choice it runs."""
PEERS = ("loader-tables", "ray-tables")
SYSTEMS = ("exact", "fp32", "auto", *PLAIN, *PEERS)
_SHARDS = 8
_GROUP_BYTES = 256 * 2**20
"""Of a table in memory while it is written."""


def main() -> None:
    wanted = parse()
    systems, skipped = usable([each for each in wanted.systems if each not in PLAIN])
    systems += [each for each in wanted.systems if each in PLAIN]
    results, differences = [], {}
    for features, rows in wanted.tables:
        with tempfile.TemporaryDirectory(dir=wanted.folder) as name:
            measured = Measured(table_case(Path(name), features, rows), features)
            measured.tune(systems, skipped)
            kind = f"mlp-{features}"
            runs = in_turn(systems, wanted.runs, measured.run, skipped, kind)
            results += [summarise(kind, s, measured.said(s), found) for s, found in runs.items()]
            differences[kind] = measured.differences()
    document = {
        "date": today(),
        "kind": "tables",
        "tables": wanted.tables,
        "runs": wanted.runs,
        "machine": machine(),
        "results": results,
        "differences": differences,
        "skipped": skipped,
    }
    tell(document, wanted.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--systems", nargs="*", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument(
        *("--tables", "-t"),
        type=lambda text: tuple(map(int, text.split("x"))),
        nargs="*",
        default=[WIDE, TALL],
        help="features x rows, as in 10x1000000",
    )
    parser.add_argument("--folder", type=Path, help="where tables and outputs go for a while")
    parser.add_argument("--out", type=Path, help="also write the JSON line to this file")
    return parser.parse_args()


def table_case(folder: Path, num_features: int, num_rows: int) -> Case:
    """Write a table of noise, and the weights of its network."""
    (folder / "in").mkdir()
    schema = pa.schema([("id", pa.int64()), *((n, pa.float32()) for n in names_of(num_features))])
    rng = np.random.default_rng(0)
    bounds = np.linspace(0, num_rows, min(_SHARDS, num_rows) + 1).astype(int).tolist()
    step = max(1, _GROUP_BYTES // (4 * num_features))
    for index, (first, end) in enumerate(itertools.pairwise(bounds)):
        pieces = []
        for start in range(first, end, step):
            size = min(step, end - start)
            columns = [rng.standard_normal(size, np.float32) for _ in range(num_features)]
            pieces.append(pa.table([np.arange(start, start + size), *columns], schema=schema))
        pq.write_table(pa.concat_tables(pieces), folder / "in" / f"{index}.parquet")
    torch.manual_seed(0)
    weights = folder / "mlp.safetensors"
    save_file(mlp(num_features).state_dict(), weights)
    model = {
        "factory": "tables_model:mlp",
        "args": {"num_features": num_features},
        "weights": str(weights),
        "task": "regress",
    }
    columns = {"format": "parquet", "features": names_of(num_features), "pass_through": ["id"]}
    return Case(folder, folder / "in", num_rows, model, columns=columns)


class Measured(Tuned):
    """Runs the systems over one table, and remembers what they chose and wrote."""

    def __init__(self, case: Case, num_features: int) -> None:
        super().__init__(case, f"mlp-{num_features}", PLAIN)
        self._num_features = num_features
        self._batches: dict[str, int] = {}
        self._outputs: dict[str, Path] = {}

    def run(self, system: str) -> dict[str, Any]:
        """Run a system once.

        Raises:
            Unusable: It failed.
        """
        if system in OURS:
            found = run_job(self._case, system, sections_of(self._case, system))
            self._batches[system] = found["batch_size"]
            self._outputs[system] = Path(found.pop("out")) / "predictions"
            return found
        out = self._case.folder / f"out-{system}-{time.time_ns()}"
        more = self._choice_of(PLAIN[system]) if system in PLAIN else []
        name = "plain-tables" if system in PLAIN else system
        found = run_peer(name, self._case, str(out), str(self._num_features), *more)
        self._outputs[system] = out
        return found

    def _choice_of(self, ours: str) -> list[str]:
        """Return the arguments of the reference: what one of our systems chose."""
        if ours not in self._chosen or ours not in self._batches:
            raise Unusable(f"the reference takes what {ours} chose, which has not run")
        found, batch = self._chosen[ours], self._batches[ours]
        runtime, precision = str(found["chosen"]).split()[:2]
        return [runtime, precision, str(batch), str(CORES), "1"]

    def differences(self) -> dict[str, float]:
        """Return the largest difference of a number between ours and another system, per ours."""
        other = next((self._outputs[s] for s in self._outputs if s not in OURS), None)
        if other is None:
            return {}
        expected = _values(other)
        return {
            system: float(np.abs(_values(path) - expected).max())
            for system, path in self._outputs.items()
            if system in OURS
        }


def _values(folder: Path) -> np.ndarray:
    """Return the numbers, (N,), in the order of their ids, which must be 0 to N - 1."""
    rows = pq.read_table(folder, columns=["id", "value"])
    ids = rows.column("id").to_numpy()
    order = np.argsort(ids)
    if not (ids[order] == np.arange(len(ids))).all():
        raise Unusable("ids are missing or there twice")
    return rows.column("value").to_numpy()[order]


if __name__ == "__main__":
    main()
