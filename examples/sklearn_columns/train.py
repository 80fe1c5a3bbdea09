"""Write customers, train a pipeline of scikit-learn on them, and export it to ONNX.

`train.py [FOLDER]`; without one it is `demo-output/sklearn_columns`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

NUMBERS, TEXTS = ["age", "fee"], ["plan", "country"]
NUM_ROWS = 2_000


def make_customers(num_rows: int = NUM_ROWS) -> pd.DataFrame:
    """Return customers, and whether each of them stayed."""
    rng = np.random.default_rng(3)
    rows = pd.DataFrame(
        {
            "customer_id": np.arange(num_rows),
            "age": rng.integers(18, 90, num_rows),
            "fee": rng.uniform(5, 99, num_rows).round(2),
            "plan": rng.choice(["basic", "plus", "pro"], num_rows),
            "country": rng.choice(["de", "es", "fr", "it"], num_rows),
        }
    )
    risk = rows.fee / 40 - rows.age / 50 + (rows.plan == "basic") - (rows.country == "fr")
    leaves = risk + rng.normal(0, 0.5, num_rows) > 0.8
    return rows.assign(outcome=np.where(leaves, "leaves", "stays"))


def train(rows: pd.DataFrame) -> Pipeline:
    """Return the trained pipeline."""
    columns = make_column_transformer(
        (StandardScaler(), NUMBERS), (OneHotEncoder(handle_unknown="ignore"), TEXTS)
    )
    return make_pipeline(columns, LogisticRegression()).fit(rows, rows.outcome)


def export(model: Pipeline, path: Path) -> None:
    """Write the pipeline with an input for each column."""
    types = [(name, FloatTensorType([None, 1])) for name in NUMBERS]
    types += [(name, StringTensorType([None, 1])) for name in TEXTS]
    path.write_bytes(to_onnx(model, initial_types=types).SerializeToString())


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output/sklearn_columns")
    (folder / "customers").mkdir(parents=True, exist_ok=True)
    customers = make_customers()
    export(train(customers), folder / "churn.onnx")
    customers.drop(columns="outcome").to_parquet(folder / "customers" / "0.parquet")
    print(f"wrote {folder}/customers and {folder}/churn.onnx")
