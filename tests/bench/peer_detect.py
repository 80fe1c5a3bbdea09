"""Peers `loader-detect` and `ray-detect`: object detection as the documentation of transformers has
it, in a DataLoader's loop, and in Ray Data's pool of actors."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import numpy as np
from peer_loader import Photos
from peer_model import BATCH, CORES, DEVICE, files_of, steady_rate
from peer_ray import EXTENSIONS

MIN_SCORE = 0.1


def loader_detect(images: str, model: str, weights: str) -> dict[str, Any]:
    import torch
    from torch.utils.data import DataLoader

    detector = Detector(model)
    photos = Photos(files_of(images), lambda image: (detector.prepared(image), image.size))
    found, ends = [], []
    for pixels, sizes in DataLoader(photos, batch_size=BATCH, num_workers=CORES):
        found += detector.boxes(pixels, torch.stack(sizes[::-1], 1))
        ends += [time.time()] * len(pixels)
    return {"rows": len(found), "steady": steady_rate(ends)}


def ray_detect(images: str, model: str, weights: str) -> dict[str, Any]:
    import pyarrow.parquet as pq
    import ray
    import torch

    detector = Detector(model)

    def preprocess(row: dict[str, Any]) -> dict[str, Any]:
        from PIL import Image

        image = Image.fromarray(row["image"])
        pixels = detector.prepared(image).numpy()
        return {"path": row["path"], "pixels": pixels, "size": np.array(image.size[::-1])}

    class Pool:
        def __init__(self) -> None:
            torch.set_num_threads(1)
            self.detector = Detector(model)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            pixels, sizes = torch.from_numpy(batch["pixels"]), torch.from_numpy(batch["size"])
            found = self.detector.boxes(pixels, sizes)
            at = np.full(len(found), time.time())
            return {
                "path": batch["path"],
                "boxes": [len(each["boxes"]) for each in found],
                "at": at,
            }

    ray.init(logging_level="ERROR", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    with tempfile.TemporaryDirectory() as out:
        (
            ray.data.read_images(images, include_paths=True, mode="RGB", file_extensions=EXTENSIONS)
            .map(preprocess)
            .map_batches(Pool, batch_size=BATCH, concurrency=max(1, CORES - 1))
            .write_parquet(out)
        )
        ends = pq.read_table(out)["at"].to_pylist()
    return {"rows": len(ends), "steady": steady_rate(ends)}


class Detector:
    """A directory's processor and model, in eager fp32."""

    def __init__(self, path: str) -> None:
        from transformers import AutoImageProcessor, AutoModelForObjectDetection

        self._processor = AutoImageProcessor.from_pretrained(path)
        self._model = AutoModelForObjectDetection.from_pretrained(path).eval().to(DEVICE)

    def prepared(self, image: Any) -> Any:
        """Return float32 (3, S, S) of a Pillow image."""
        return self._processor(images=image, return_tensors="pt")["pixel_values"][0]

    def boxes(self, pixels: Any, sizes: Any) -> list[dict[str, Any]]:
        """Return the boxes of each image of a batch (B, 3, S, S); `sizes` (B, 2): height, width."""
        import torch

        with torch.inference_mode():
            found = self._model(pixel_values=pixels.to(DEVICE))
        return self._processor.post_process_object_detection(found, MIN_SCORE, sizes)
