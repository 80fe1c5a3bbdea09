"""Turn encoded images into model input: decode and transform those of a slice.

It works row by row, so that no full-size image outlives its row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pipeline.core.arrays import images_to_arrow, sized_to_arrow
from pipeline.core.failures import Failure, RowError, failure_columns, failures_of
from pipeline.core.figures.counters import Counters, StageCounters, add
from pipeline.core.schema import IMAGE, IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX
from pipeline.preprocessing.images.decode import Decoded, decode_sized
from pipeline.preprocessing.images.geometry import Sizes, most_made_px, shrink_factor
from pipeline.preprocessing.images.image_checks import DecodeLimits
from pipeline.preprocessing.images.own_transform import step_of, transform_by
from pipeline.preprocessing.images.resizing import resize_and_crop
from pipeline.preprocessing.images.transform import TransformSpec
from pipeline.process.liveness import still_alive


def preprocess(
    rows: pa.Table,
    counters: Counters,
    limits: DecodeLimits,
    spec: TransformSpec,
    num_threads: int = 1,
) -> pa.Table:
    """Decode and transform the images of a slice.

    Args:
        rows: `source_schema`; encoded bytes in `image`.
        counters: Gets the entries `decode` and `transform`.
        limits: Size limits, checked before decoding.
        num_threads: Rows decoded at once; decoders and filters release the GIL.

    Returns:
        The same rows with `image` as fixed-size binary, uint8 (H, W, C), zeros where `error` is
        set, or as the columns of `OwnSizes`; and with the columns of `Sizes`.

    Raises:
        JobError: The user's own transform cannot be made.
    """
    pixels, sizes = pixels_of(spec, rows.num_rows), Sizes(rows.num_rows)
    failures = failures_of(rows)
    todo = [index for index, failure in enumerate(failures) if failure is None]
    encoded = rows.column(IMAGE)
    shares = [
        _Share(encoded, pixels, sizes, failures, limits, spec, _maker(spec, limits, thread))
        for thread in range(num_threads)
    ]
    _work(shares, todo, counters)
    columns = {name: rows.column(name) for name in rows.column_names}
    columns.update(pixels.columns())
    columns.update(sizes.columns())
    columns.update(failure_columns(failures))
    return pa.table(columns)


def _maker(
    spec: TransformSpec, limits: DecodeLimits, thread: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what makes model input, uint8 (C, H, W), of an image: ours, or the user's own."""
    if spec.factory is None:
        return partial(resize_and_crop, spec=spec, max_px=most_made_px(limits.max_image_px))
    step = step_of(spec, thread)
    return partial(transform_by, step, spec=spec, max_px=limits.max_image_px)


def _work(shares: Sequence[_Share], todo: Sequence[int], counters: Counters) -> None:
    """Run each share in a thread of its own, and count what they did."""
    num_threads = len(shares)
    started = perf_counter()
    if num_threads == 1:
        shares[0].work(todo)
    else:
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(lambda n: shares[n].work(todo[n::num_threads]), range(num_threads)))
    wall_s = perf_counter() - started
    worked_s = sum(share.decode.busy_s + share.transform.busy_s for share in shares)
    # Busy seconds are those of the slot, however many threads it has.
    scale = min(1.0, wall_s / worked_s) if worked_s else 1.0
    for share in shares:
        for stage, did in (("decode", share.decode), ("transform", share.transform)):
            add(counters, stage, replace(did, busy_s=did.busy_s * scale))


@dataclass
class _Share:
    """The rows of a slice that one thread decodes, each into its place in `pixels`."""

    encoded: pa.ChunkedArray
    pixels: Pixels
    sizes: Sizes
    failures: list[Failure | None]
    limits: DecodeLimits
    spec: TransformSpec
    make: Callable[[torch.Tensor], torch.Tensor]
    decode: StageCounters = field(default_factory=StageCounters)
    transform: StageCounters = field(default_factory=StageCounters)

    def work(self, rows: Sequence[int]) -> None:
        for row in rows:
            still_alive()
            data: bytes = self.encoded[row].as_py()
            found = self._decode(row, data)
            if found is not None:
                self.sizes.put(row, self.spec, found.size_px, found.decoded_px)
                self._transform(row, data, found.pixels)

    def _decode(self, row: int, data: bytes) -> Decoded | None:
        spec, started = self.spec, perf_counter()
        shrink = partial(shrink_factor, spec) if spec.shrink_on_load else None
        try:
            found = decode_sized(data, self.limits, shrink)
        except RowError as error:
            self.failures[row] = _failure(error, "decode", data)
            busy_s = perf_counter() - started
            self.decode += StageCounters(1, 0, 1, len(data), 0, busy_s)
            return None
        busy_s = perf_counter() - started
        self.decode += StageCounters(1, 1, 0, len(data), found.pixels.numel(), busy_s)
        return found

    def _transform(self, row: int, data: bytes, image: torch.Tensor) -> None:
        started = perf_counter()
        try:
            num_bytes = self.pixels.put(row, self.make(image))
        except RowError as error:
            self.failures[row] = _failure(error, "transform", data)
            busy_s = perf_counter() - started
            self.transform += StageCounters(1, 0, 1, image.numel(), 0, busy_s)
            return
        busy_s = perf_counter() - started
        self.transform += StageCounters(1, 1, 0, image.numel(), num_bytes, busy_s)


def _failure(error: RowError, stage: str, data: bytes) -> Failure:
    return Failure(error.reason, stage, error.message, hashlib.sha256(data).hexdigest(), len(data))


class Pixels(Protocol):
    """The model input of N images; rows that were never put have none."""

    def put(self, row: int, image: torch.Tensor) -> int:
        """Copy the model input of a row, uint8 (C, H, W); return its bytes."""
        ...

    def columns(self) -> dict[str, pa.Array]:
        """Return the columns of `ImageInput.fields` that hold the images."""
        ...


class OneSize:
    """Images of one size, in one buffer."""

    def __init__(self, num_rows: int, shape: tuple[int, int, int]) -> None:
        """Take N, and (H, W, C) of each."""
        self.images = np.zeros((num_rows, *shape), np.uint8)

    def put(self, row: int, image: torch.Tensor) -> int:
        place: npt.NDArray[np.uint8] = self.images[row]
        np.copyto(place, image.permute(1, 2, 0).numpy())
        return place.nbytes

    def columns(self) -> dict[str, pa.Array]:
        return {IMAGE: images_to_arrow(self.images)}


class OwnSizes:
    """Images of different sizes."""

    def __init__(self, num_rows: int) -> None:
        self.images: list[npt.NDArray[np.uint8] | None] = [None] * num_rows

    def put(self, row: int, image: torch.Tensor) -> int:
        # Always a copy: the user's transform may return the same memory for the next image.
        found = np.array(image.permute(1, 2, 0).numpy(), order="C")
        self.images[row] = found
        return found.nbytes

    def columns(self) -> dict[str, pa.Array]:
        pixels, heights, widths = sized_to_arrow(self.images)
        return {IMAGE: pixels, IMAGE_HEIGHT_PX: heights, IMAGE_WIDTH_PX: widths}


def pixels_of(spec: TransformSpec, num_rows: int) -> OneSize | OwnSizes:
    """Return where the images of N rows go."""
    return OneSize(num_rows, spec.shape) if spec.has_one_size else OwnSizes(num_rows)
