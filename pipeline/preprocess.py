"""Turn encoded images into model input: decode and transform row by row, straight into one
uint8 buffer of the slice, so that no full-size image outlives its row.
"""

from __future__ import annotations

import hashlib
from time import perf_counter

import numpy as np
import pyarrow as pa

from pipeline.decode import DecodeLimits, decode_image
from pipeline.schema import (
    IMAGE,
    Failure,
    RowError,
    failure_columns,
    failures_of,
    images_to_arrow,
)
from pipeline.stats import Counters, StageCounters, add
from pipeline.transform import TransformSpec, resize_and_crop_into

_SHRINK_TO = 2
"""The decoder shrinks to this many times what the resize makes, so that the latter's filter still
decides the pixels; Pillow's `thumbnail` uses the same for results that look alike."""


def preprocess(
    rows: pa.Table, counters: Counters, limits: DecodeLimits, spec: TransformSpec
) -> pa.Table:
    """Decode and transform the images of a slice.

    Args:
        rows: `source_schema`; encoded bytes in `image`.
        counters: Gets the entries `decode` and `transform`.
        limits: What is refused before it is decoded.
        spec: The model's transform.

    Returns:
        The same rows with `image` as fixed-size binary, uint8 (S, S, 3) RGB; zeros where `error`
        is set.
    """
    images = np.zeros((rows.num_rows, spec.size_px, spec.size_px, 3), np.uint8)
    failures = failures_of(rows)
    decode_s = transform_s = 0.0
    decode = transform = StageCounters()
    column = rows.column(IMAGE)
    shrink_px = _SHRINK_TO * spec.resize_px if spec.shrink_on_load else None
    for index in range(rows.num_rows):
        if failures[index] is not None:
            continue
        data: bytes = column[index].as_py()
        started = perf_counter()
        stage = "decode"
        try:
            image = decode_image(data, limits, shrink_px)
            decoded = perf_counter()
            decode_s += decoded - started
            decode += StageCounters(1, 1, 0, len(data), image.numel())
            started, stage = decoded, "transform"
            resize_and_crop_into(image, spec, images[index])
            transform_s += perf_counter() - started
            transform += StageCounters(1, 1, 0, image.numel(), images[index].nbytes)
        except RowError as error:
            failures[index] = _failure(error, stage, data)
            elapsed = perf_counter() - started
            if stage == "decode":
                decode_s += elapsed
                decode += StageCounters(1, 0, 1, len(data), 0)
            else:
                transform_s += elapsed
                transform += StageCounters(1, 0, 1, image.numel(), 0)
    add(counters, "decode", decode + StageCounters(busy_s=decode_s))
    add(counters, "transform", transform + StageCounters(busy_s=transform_s))
    columns = {name: rows.column(name) for name in rows.column_names}
    columns[IMAGE] = images_to_arrow(images)
    columns.update(failure_columns(failures))
    return pa.table(columns)


def _failure(error: RowError, stage: str, data: bytes) -> Failure:
    return Failure(error.reason, stage, error.message, hashlib.sha256(data).hexdigest(), len(data))
