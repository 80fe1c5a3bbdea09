"""Peer `ray`: batch inference as Ray Data's documentation shows it.

read_images, map, a pool of actors, write_parquet.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import numpy as np
from peer_model import ACTORS, BATCH, GPUS, best_class, build, steady_rate, torchvision_transform

# By default it passes WebP over.
EXTENSIONS = ["jpg", "png", "webp"]


def ray(images: str, name: str, weights: str, *_: str) -> dict[str, Any]:
    import pyarrow.parquet as pq
    import ray as ray_
    import torch

    module, spec = build(name, weights)
    transform = torchvision_transform(spec)

    def preprocess(row: dict[str, Any]) -> dict[str, Any]:
        from PIL import Image

        return {"path": row["path"], "image": transform(Image.fromarray(row["image"])).numpy()}

    class Classifier:
        def __init__(self) -> None:
            torch.set_num_threads(1)
            self.module = module

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            labels = best_class(self.module, torch.from_numpy(batch["image"])).indices.numpy()
            at = np.full(len(labels), time.time())
            return {"path": batch["path"], "label": labels, "at": at}

    ray_.init(logging_level="ERROR", log_to_driver=False)
    ray_.data.DataContext.get_current().enable_progress_bars = False
    with tempfile.TemporaryDirectory() as out:
        (
            ray_.data.read_images(
                images, include_paths=True, mode="RGB", file_extensions=EXTENSIONS
            )
            .map(preprocess)
            .map_batches(Classifier, batch_size=BATCH, concurrency=ACTORS, num_gpus=GPUS)
            .write_parquet(out)
        )
        ends = pq.read_table(out)["at"].to_pylist()
    return {"rows": len(ends), "steady": steady_rate(ends)}
