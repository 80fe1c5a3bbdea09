"""Write the customers of this example, a hive dataset, and train its network.

The list of countries is kept beside the weights, for the job to read: the network knows a country
by its place in it.
`python examples/tabular/make_customers.py [FOLDER]`; without one it is `demo-output/tabular`. A
twentieth of the customers have an age or a plan that is not known.
"""

from __future__ import annotations

import datetime as dt
import json
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from customer_model import Churn
from safetensors.torch import save_file

COUNTRIES, YEARS, PLANS = ("de", "es", "fr", "it"), (2025, 2026), ("basic", "plus", "pro")
ROWS_PER_SHARD = 500
_MISSING_FEE = 20.0


def make_customers(folder: Path, rows_per_shard: int = ROWS_PER_SHARD) -> None:
    """Write one shard a country and year."""
    rng, first = np.random.default_rng(7), 0
    for country in COUNTRIES:
        for year in YEARS:
            place = folder / "customers" / f"country={country}" / f"year={year}"
            place.mkdir(parents=True, exist_ok=True)
            pq.write_table(_customers(rng, first, rows_per_shard), place / "0.parquet")
            first += rows_per_shard


def _customers(rng: np.random.Generator, first: int, size: int) -> pa.Table:
    plans = [*PLANS, "legacy", None]
    chosen = rng.choice(len(plans), size, p=[0.4, 0.3, 0.25, 0.03, 0.02])
    fees = [Decimal(int(cents)) / 100 for cents in rng.integers(500, 9900, size)]
    days = [
        dt.datetime(2026, 1, 1) + dt.timedelta(hours=int(h)) for h in rng.integers(0, 5000, size)
    ]
    return pa.table(
        {
            "customer_id": np.arange(first, first + size),
            "age": pa.array(rng.integers(18, 90, size), mask=rng.random(size) < 0.02),
            "fee": pa.array(fees, pa.decimal128(7, 2), mask=rng.random(size) < 0.03),
            "is_business": rng.random(size) < 0.2,
            "plan": pa.array([plans[index] for index in chosen]).dictionary_encode(),
            "last_seen": days,
        }
    )


def vectors(rows: pa.Table, country: str, year: int) -> np.ndarray:
    """Return the features of a shard as job.yaml has them, float32 (N, 13); NaN without an age."""
    fee = [_MISSING_FEE if value is None else float(value) for value in rows["fee"].to_pylist()]
    columns: list[Any] = [rows["age"].to_numpy(zero_copy_only=False), fee]
    columns.append(rows["is_business"].to_numpy(zero_copy_only=False))
    plans = np.array(rows["plan"].to_pylist(), object)
    columns += [plans == plan for plan in PLANS] + [~np.isin(plans, PLANS)]
    columns += [np.full(len(plans), each == country) for each in COUNTRIES]
    columns.append(np.full(len(plans), year))
    columns.append([moment.weekday() for moment in rows["last_seen"].to_pylist()])
    return np.stack([np.asarray(column, np.float32) for column in columns], axis=1)


def all_vectors(folder: Path) -> dict[str, np.ndarray]:
    """Return path -> the features of the shard."""
    found = {}
    for path in sorted((folder / "customers").rglob("*.parquet")):
        country, year = (part.partition("=")[2] for part in path.parts[-3:-1])
        rows = pq.ParquetFile(path).read()
        found[path.relative_to(folder / "customers").as_posix()] = vectors(rows, country, int(year))
    return found


def train(folder: Path) -> None:
    """Train the network on a made-up rule, for a second: who pays much for little leaves."""
    rows = np.concatenate([*all_vectors(folder).values()])
    rows = rows[~np.isnan(rows).any(axis=1)]
    leaves = (rows[:, 1] - 30 * rows[:, 5] + 10 * rows[:, 8] + 3 * rows[:, 12]) > 40
    torch.manual_seed(0)
    model, inputs, wanted = Churn(), torch.from_numpy(rows), torch.from_numpy(leaves).long()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), wanted).backward()
        optimizer.step()
    save_file(model.state_dict(), folder / "churn.safetensors")
    (folder / "countries.json").write_text(json.dumps(COUNTRIES))


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output/tabular")
    make_customers(folder)
    train(folder)
    print(f"{len(COUNTRIES) * len(YEARS) * ROWS_PER_SHARD} customers below {folder}")


if __name__ == "__main__":
    main()
