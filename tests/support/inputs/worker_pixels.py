"""Preprocess images in a worker: one process, which must outlive them all."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pyarrow as pa

from pipeline.core.arrays import images_from_arrow
from pipeline.core.failures import failure_columns
from pipeline.preprocessing.images.decode import DecodeLimits
from pipeline.preprocessing.images.images import preprocess
from pipeline.preprocessing.images.transform import TransformSpec
from support.inputs.badfiles import MAX_IMAGE_BYTES, MAX_IMAGE_PX

LIMITS = DecodeLimits(MAX_IMAGE_BYTES, MAX_IMAGE_PX)
SPEC = TransformSpec(24, 28, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def preprocess_slice(images: list[bytes]) -> tuple[int, list[str | None], bytes]:
    """In the worker: its process, the reason of each row or None, and the pixels of all."""
    warnings.simplefilter("ignore")
    columns = {"image": pa.array(images, pa.large_binary())}
    rows = pa.table({**columns, **failure_columns([None] * len(images))})
    found = preprocess(rows, {}, LIMITS, SPEC)
    pixels = images_from_arrow(found.column("image"), SPEC.shape)
    return os.getpid(), found.column("error").to_pylist(), pixels.tobytes()


def in_a_worker(slices: list[list[bytes]]) -> tuple[set[int], list[str | None], np.ndarray]:
    """Preprocess slices in one process of its own; a worker that crashes raises."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        found = list(pool.map(preprocess_slice, slices))
    pixels = np.frombuffer(b"".join(data for _, _, data in found), np.uint8)
    reasons = [reason for _, reasons, _ in found for reason in reasons]
    shape = (len(reasons), SPEC.size_px, SPEC.size_px, 3)
    return {pid for pid, _, _ in found}, reasons, pixels.reshape(shape)
