"""What throughput.py compares with: `python tests/bench/peers.py SYSTEM IMAGES MODEL WEIGHTS ...`.

Each prints one JSON line: rows, and the rows/s once it was running.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 32


def build(name: str, weights: str) -> tuple[Any, Any]:
    """The module and its transform."""
    import torch
    from torchvision.models import get_model

    from pipeline.transform import TransformSpec

    if name == "efficientnet-lite0":
        from pipeline.zoo import efficientnet_lite0

        card = efficientnet_lite0()
        module = card.build()
        module.load_state_dict(torch.load(card.weights_path, weights_only=True))
        return module.eval(), card.transform
    from safetensors.torch import load_file

    module = get_model(name, weights=None)
    module.load_state_dict(load_file(weights))
    spec = TransformSpec(224, 256, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return module.eval(), spec


def files_of(images: str) -> list[str]:
    return sorted(str(path) for path in Path(images).rglob("*.*"))


def torchvision_transform(spec: Any) -> Any:
    from torchvision import transforms as T
    from torchvision.transforms import InterpolationMode

    return T.Compose(
        [
            T.Resize(spec.resize_px, InterpolationMode(spec.interpolation)),
            T.CenterCrop(spec.size_px),
            T.ToTensor(),
            T.Normalize(spec.mean, spec.std),
        ]
    )


class _Photos:
    def __init__(self, files: list[str], transform: Any) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        return self.transform(Image.open(self.files[index]).convert("RGB"))


def loader(images: str, name: str, weights: str, *_: str) -> dict[str, float]:
    """A torch DataLoader with as many workers as cores, and the loop of the tutorials."""
    import torch
    from torch.utils.data import DataLoader

    module, spec = build(name, weights)
    photos = _Photos(files_of(images), torchvision_transform(spec))
    data = DataLoader(photos, batch_size=BATCH, num_workers=os.cpu_count() or 1)
    rows, first_at = 0, 0.0
    found = []
    with torch.inference_mode():
        for batch in data:
            found.append(torch.softmax(module(batch), 1).max(1))
            rows += len(batch)
            first_at = first_at or time.perf_counter()
    return {"rows": rows, "steady": (rows - BATCH) / (time.perf_counter() - first_at)}


def ray(images: str, name: str, weights: str, *_: str) -> dict[str, float]:
    """Batch inference as Ray Data's documentation shows it."""
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
            with torch.inference_mode():
                scores = torch.softmax(self.module(torch.from_numpy(batch["image"])), 1)
            best = scores.max(1)
            return {
                "path": batch["path"],
                "label": best.indices.numpy(),
                "at": np.full(len(batch["path"]), time.time()),
            }

    ray_.init(logging_level="ERROR", log_to_driver=False)
    ray_.data.DataContext.get_current().enable_progress_bars = False
    with tempfile.TemporaryDirectory() as out:
        (
            ray_.data.read_images(images, include_paths=True, mode="RGB")
            .map(preprocess)
            .map_batches(
                Classifier, batch_size=BATCH, concurrency=max(1, (os.cpu_count() or 2) - 1)
            )
            .write_parquet(out)
        )
        import pyarrow.parquet as pq

        at = sorted(pq.read_table(out)["at"].to_pylist())
    return {"rows": len(at), "steady": (len(at) - BATCH) / max(1e-9, at[-1] - at[0])}


def _share(job: tuple[list[str], str, str, str, str, Any]) -> None:
    files, name, weights, runtime, precision, queue = job
    import torch

    from pipeline.decode import DecodeLimits, decode_image
    from pipeline.runtimes import Whole, dtype_of, make_runner
    from pipeline.transform import resize_and_crop_into

    torch.set_num_threads(1)
    module, spec = build(name, weights)
    kind = dtype_of(runtime, precision)
    whole = Whole(module.to(kind).to(memory_format=torch.channels_last), spec, kind).eval()
    buffer = torch.zeros((BATCH, spec.size_px, spec.size_px, 3), dtype=torch.uint8)
    runner = make_runner(runtime, precision, whole, buffer, num_threads=1)
    limits = DecodeLimits(1 << 30, 1 << 30)
    queue.put(("ready", os.getpid()))
    queue_go.wait()
    started = time.perf_counter()
    for first in range(0, len(files), BATCH):
        for row, path in enumerate(files[first : first + BATCH]):
            image = decode_image(Path(path).read_bytes(), limits)
            resize_and_crop_into(image, spec, buffer[row].numpy())
        with torch.inference_mode():
            torch.softmax(runner.run(buffer).float(), 1).topk(5)
    queue.put(("rate", len(files), time.perf_counter() - started))


queue_go: Any = None


def _begin(go: Any) -> None:
    global queue_go
    queue_go = go


def limit(images: str, name: str, weights: str, runtime: str, precision: str) -> dict[str, float]:
    """One plain process a core with our decoder and runtime: nothing but the work itself."""
    context = get_context("spawn")
    files, cores = files_of(images), os.cpu_count() or 1
    go, manager = context.Event(), context.Manager()
    queue = manager.Queue()
    shares = [
        context.Process(
            target=_run_share,
            args=(go, (files[i::cores], name, weights, runtime, precision, queue)),
        )
        for i in range(cores)
    ]
    for share in shares:
        share.start()
    for _ in shares:
        queue.get()
    go.set()
    found = [queue.get() for _ in shares]
    for share in shares:
        share.join()
    return {"rows": len(files), "steady": len(files) / max(seconds for _, _, seconds in found)}


def _run_share(go: Any, job: Any) -> None:
    _begin(go)
    _share(job)


def main() -> None:
    system, *arguments = sys.argv[1:]
    found = {"loader": loader, "ray": ray, "limit": limit}[system](*arguments)
    print(json.dumps(found))


if __name__ == "__main__":
    # The allocator settings that our workers get, for the limit as well.
    main()
