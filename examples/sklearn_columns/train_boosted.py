"""Train XGBoost on the numbers of the customers of train.py, and export it to ONNX.

`train_boosted.py [FOLDER]`; without one it is `demo-output/sklearn_columns`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from onnxmltools import convert_xgboost
from onnxmltools.convert.common.data_types import FloatTensorType
from train import NUMBERS, make_customers
from xgboost import XGBClassifier


def train(rows: pd.DataFrame) -> XGBClassifier:
    """Return the trained model; its features have no names, as ONNX wants them."""
    numbers = rows[NUMBERS].to_numpy(np.float32)
    return XGBClassifier(n_estimators=40, max_depth=3).fit(
        numbers, (rows.outcome == "leaves").astype(int)
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output/sklearn_columns")
    types = [("features", FloatTensorType([None, len(NUMBERS)]))]
    model = convert_xgboost(train(make_customers()), initial_types=types, target_opset=15)
    (folder / "boosted.onnx").write_bytes(model.SerializeToString())
    print(f"wrote {folder}/boosted.onnx")
