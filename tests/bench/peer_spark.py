"""Peer `spark`: `predict_batch_udf` over files read as binaryFile, decoded in the function."""

from __future__ import annotations

import io
import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from peer_model import BATCH, best_class, build, steady_rate, torchvision_transform

# The default of 1 GiB does not hold a batch of large photos beside what Arrow copies of it.
_DRIVER_MEMORY = "4g"


def spark(images: str, name: str, weights: str, *_: str) -> dict[str, Any]:
    import pyarrow.parquet as pq
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql import SparkSession
    from pyspark.sql.types import DoubleType, LongType, StructField, StructType

    os.environ["PYSPARK_PYTHON"] = sys.executable
    session = (
        SparkSession.builder.master("local[*]")
        .config("spark.driver.memory", _DRIVER_MEMORY)
        .config("spark.ui.enabled", "false")
        .getOrCreate()
    )
    kinds = StructType([StructField("label", LongType()), StructField("at", DoubleType())])
    classify = predict_batch_udf(lambda: _load(name, weights), return_type=kinds, batch_size=BATCH)
    files = session.read.format("binaryFile").option("recursiveFileLookup", "true").load(images)
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "out")
        files.select("path", classify("content").alias("found")).write.parquet(out)
        ends = [found["at"] for found in pq.read_table(out)["found"].to_pylist()]
    session.stop()
    return {"rows": len(ends), "steady": steady_rate(ends)}


def _load(name: str, weights: str) -> Callable[[Any], dict[str, Any]]:
    """What Spark calls once in a Python worker: load the model, return what predicts a batch."""
    import torch
    from PIL import Image

    torch.set_num_threads(1)
    module, spec = build(name, weights)
    transform = torchvision_transform(spec)

    def predict(contents: Any) -> dict[str, Any]:
        photos = [transform(Image.open(io.BytesIO(data)).convert("RGB")) for data in contents]
        labels = best_class(module, torch.stack(photos)).indices.numpy()
        return {"label": labels, "at": np.full(len(labels), time.time())}

    return predict
