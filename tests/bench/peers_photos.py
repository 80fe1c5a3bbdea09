"""Peers over photos: a DataLoader loop, Ray Data, Daft and Spark as documented, and `limit`.

Each returns the number of rows, and the seconds of the work without loading.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

CORES = os.cpu_count() or 1
DEVICE = os.environ.get("PEERS_DEVICE", "cpu")
"""Where the peers' models run."""
DTYPE = os.environ.get("PEERS_DTYPE", "float32")
"""What they compute in: `float32`, `bfloat16` or `float16`."""
GPUS = float(DEVICE != "cpu")
"""Cards of an actor; there is one actor with one, and otherwise one a core."""
BATCH, ACTORS = (128, 1) if GPUS else (32, max(1, CORES - 1))
# By default Ray Data passes WebP over.
EXTENSIONS = ["jpg", "png", "webp"]
Done = tuple[int, float]


def build(name: str, weights: str) -> tuple[Any, Any]:
    """The module and its transform."""
    import torch
    from torchvision.models import get_model

    from pipeline.preprocessing.images.transform import TransformSpec

    if name == "efficientnet-lite0":
        from pipeline.models.zoo import efficientnet_lite0

        card = efficientnet_lite0()
        module = card.build()
        module.load_state_dict(torch.load(card.weights_path, weights_only=True))
        return module.eval(), card.transform
    from safetensors.torch import load_file

    module = get_model(name, weights=None)
    module.load_state_dict(load_file(weights))
    spec = TransformSpec(224, 256, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return module.eval(), spec


def torchvision_transform(spec: Any) -> Any:
    """The transform as torchvision's own pages have it, from a Pillow image to float32."""
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


def best_class(module: Any, batch: Any) -> np.ndarray:
    """The class of each row."""
    import torch

    dtype = getattr(torch, DTYPE)
    with torch.inference_mode():
        logits = module.to(DEVICE, dtype)(batch.to(DEVICE, dtype))
        return torch.softmax(logits.float(), 1).cpu().max(1).indices.numpy()


def files_of(images: str) -> list[str]:
    return sorted(str(path) for path in Path(images).rglob("*.*"))


def written(write: Callable[[str], object], out: str) -> Done:
    """Write Parquet into a folder, and count its rows."""
    import pyarrow.dataset as ds

    started = time.perf_counter()
    write(out)
    work_s = time.perf_counter() - started
    return ds.dataset(out, format="parquet").count_rows(), work_s


class Photos:
    def __init__(self, files: list[str], transform: Any) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        return self.transform(Image.open(self.files[index]).convert("RGB"))


def loader(images: str, name: str, weights: str, out: str) -> Done:
    """A DataLoader with a worker a core, and the loop of the tutorials."""
    from torch.utils.data import DataLoader

    module, spec = build(name, weights)
    photos = Photos(files_of(images), torchvision_transform(spec))
    classes, started = [], time.perf_counter()
    for batch in DataLoader(photos, batch_size=BATCH, num_workers=CORES):
        classes += best_class(module, batch).tolist()
    return len(classes), time.perf_counter() - started


def ray(images: str, name: str, weights: str, out: str) -> Done:
    """Batch inference of Ray Data: read_images, map, a pool of actors, write_parquet."""
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
            labels = best_class(self.module, torch.from_numpy(batch["image"]))
            return {"path": batch["path"], "label": labels}

    ray_.init(logging_level="ERROR", log_to_driver=False)
    ray_.data.DataContext.get_current().enable_progress_bars = False
    rows = ray_.data.read_images(
        images, include_paths=True, mode="RGB", file_extensions=EXTENSIONS
    ).map(preprocess)
    rows = rows.map_batches(Classifier, batch_size=BATCH, concurrency=ACTORS, num_gpus=GPUS)
    return written(rows.write_parquet, out)


def daft(images: str, name: str, weights: str, out: str) -> Done:
    """Image classification in the order of Daft's published benchmark program: list, download,
    decode, transform each image, a class UDF over batches, write_parquet; with its own runner.
    """
    import daft as daft_

    _, spec = build(name, weights)
    transform = torchvision_transform(spec)
    pixels = daft_.DataType.tensor(daft_.DataType.float32(), (3, spec.size_px, spec.size_px))

    def preprocess(image: Any) -> Any:
        from PIL import Image

        return transform(Image.fromarray(image)).numpy()

    @daft_.cls(max_concurrency=ACTORS, gpus=GPUS)
    class Classifier:
        def __init__(self, name: str, weights: str) -> None:
            self.module, _ = build(name, weights)

        @daft_.method.batch(return_dtype=daft_.DataType.int64(), batch_size=BATCH)
        def __call__(self, batch: Any) -> Any:
            import torch

            return best_class(self.module, torch.from_numpy(np.array(batch.to_pylist()))).tolist()

    frame = daft_.from_glob_path(f"{images}/**")
    frame = frame.with_column("image", frame["path"].download().decode_image(mode="RGB"))
    frame = frame.with_column("pixels", frame["image"].apply(preprocess, return_dtype=pixels))
    frame = frame.with_column("label", Classifier(name, weights)(frame["pixels"]))
    return written(frame.select("path", "label").write_parquet, out)


def spark(images: str, name: str, weights: str, out: str) -> Done:
    """`predict_batch_udf` of Spark over files read as binaryFile, decoded in the function."""
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql import SparkSession
    from pyspark.sql.types import LongType

    os.environ["PYSPARK_PYTHON"] = sys.executable
    session = (
        SparkSession.builder.master("local[*]")
        .config("spark.driver.memory", "4g")  # 1 GiB, its default, is full of batches of photos
        .config("spark.ui.enabled", "false")
        .getOrCreate()
    )
    classify = predict_batch_udf(
        lambda: _load(name, weights), return_type=LongType(), batch_size=BATCH
    )
    files = session.read.format("binaryFile").option("recursiveFileLookup", "true").load(images)
    done = written(files.select("path", classify("content").alias("label")).write.parquet, out)
    session.stop()
    return done


def _load(name: str, weights: str) -> Callable[[Any], np.ndarray]:
    """What Spark calls once in a Python worker: load the model, return what predicts a batch."""
    import torch
    from PIL import Image

    torch.set_num_threads(1)
    module, spec = build(name, weights)
    transform = torchvision_transform(spec)

    def predict(contents: Any) -> np.ndarray:
        photos = [transform(Image.open(io.BytesIO(data)).convert("RGB")) for data in contents]
        return best_class(module, torch.stack(photos))

    return predict


_all_are_ready: Any = None
"""Of a process."""


def limit(
    images: str,
    name: str,
    weights: str,
    runtime: str,
    precision: str,
    batch_size: str,
    calibrated: str,
) -> Done:
    """Predict the photos in one plain process per core, each its share.

    With our decoder and the runtime that `auto` chose, and without Ray, storage and publishing. The
    processes wait for each other to start. `calibrated` is the path of the int8 model, if any.
    """
    files, context = files_of(images), get_context("spawn")
    model = (name, weights, runtime, precision, int(batch_size), calibrated)
    ready = context.Barrier(CORES)
    with ProcessPoolExecutor(CORES, context, initializer=_wait_at, initargs=(ready,)) as pool:
        done = [pool.submit(_work, files[core::CORES], *model) for core in range(CORES)]
        return len(files), max(future.result() for future in done)


def _wait_at(ready: Any) -> None:
    global _all_are_ready
    _all_are_ready = ready


def _work(files: list[str], name: str, weights: str, *how: Any) -> float:
    """Return the seconds that it took from when all processes had loaded their model."""
    import torch

    from pipeline.preprocessing.images.decode_image import DecodeLimits, decode_image
    from pipeline.preprocessing.images.resizing import resize_and_crop

    torch.set_num_threads(1)
    runner, spec, buffer = _runner(name, weights, *how)
    limits, size = DecodeLimits(1 << 30, 1 << 30), len(buffer)
    _all_are_ready.wait(600)
    started = time.perf_counter()
    for first in range(0, len(files), size):
        for row, path in enumerate(files[first : first + size]):
            image = decode_image(Path(path).read_bytes(), limits)
            buffer[row] = resize_and_crop(image, spec).permute(1, 2, 0)
        with torch.inference_mode():
            torch.softmax(runner.run({"image": buffer}).float(), 1).topk(5)
    return time.perf_counter() - started


def _runner(
    name: str, weights: str, runtime: str, precision: str, batch_size: int, calibrated: str
) -> tuple[Any, Any, Any]:
    import torch

    from pipeline.inference.runtimes.inference_module import InferenceModule
    from pipeline.inference.runtimes.make_runner import dtype_of, make_runner
    from pipeline.preprocessing.images.image_input import ImageInput
    from pipeline.preprocessing.model_input import BatchLimits

    module, spec = build(name, weights)
    dtype, seen = dtype_of(runtime, precision), ImageInput(spec)
    whole = InferenceModule(
        module.to(dtype).to(memory_format=torch.channels_last), seen, dtype
    ).eval()
    [slot] = seen.slots(BatchLimits(batch_size)).values()
    buffer = torch.zeros(slot.shape, dtype=torch.uint8)
    runner = make_runner(
        runtime,
        precision,
        lambda: whole,
        {"image": buffer},
        num_threads=1,
        calibrated=Path(calibrated).read_bytes() if calibrated else None,
    )
    return runner, spec, buffer
