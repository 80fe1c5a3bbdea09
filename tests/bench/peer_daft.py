"""Peer `daft`: image classification in the order of Daft's published benchmark program.

List the files, download, decode, transform each image, a class UDF over batches, write_parquet;
with Daft's own runner for one machine, which chooses between threads and processes by itself.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import numpy as np
from peer_model import ACTORS, BATCH, GPUS, best_class, build, steady_rate, torchvision_transform


def daft(images: str, name: str, weights: str, *_: str) -> dict[str, Any]:
    import daft as daft_
    import pyarrow.parquet as pq

    _, spec = build(name, weights)
    transform = torchvision_transform(spec)
    pixels = daft_.DataType.tensor(daft_.DataType.float32(), (3, spec.size_px, spec.size_px))

    def preprocess(image: Any) -> Any:
        from PIL import Image

        return transform(Image.fromarray(image)).numpy()

    frame = daft_.from_glob_path(f"{images}/**")
    frame = frame.with_column("image", frame["path"].download().decode_image(mode="RGB"))
    frame = frame.with_column("pixels", frame["image"].apply(preprocess, return_dtype=pixels))
    frame = frame.with_column("found", _classifier(daft_)(name, weights)(frame["pixels"]))
    with tempfile.TemporaryDirectory() as out:
        frame.select("path", "found").write_parquet(out)
        ends = [found["at"] for found in pq.read_table(out)["found"].to_pylist()]
    return {"rows": len(ends), "steady": steady_rate(ends)}


def _classifier(daft_: Any) -> Any:
    kinds = {"label": daft_.DataType.int64(), "at": daft_.DataType.float64()}

    @daft_.cls(max_concurrency=ACTORS, gpus=GPUS)
    class Classifier:
        def __init__(self, name: str, weights: str) -> None:
            self.module, _ = build(name, weights)

        @daft_.method.batch(return_dtype=daft_.DataType.struct(kinds), batch_size=BATCH)
        def __call__(self, batch: Any) -> Any:
            import torch

            pixels = torch.from_numpy(np.array(batch.to_pylist()))
            labels = best_class(self.module, pixels).indices.tolist()
            at = time.time()
            return [{"label": label, "at": at} for label in labels]

    return Classifier
