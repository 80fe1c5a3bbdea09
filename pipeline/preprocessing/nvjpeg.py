"""Decode JPEGs in groups on a GPU; the CPU decodes the images that are not plain JPEGs.

The plain JPEGs of a slice (`plain_jpeg_px`) are decoded and transformed on the GPU, and copied into
the slice's buffer. A group that fails is halved until the image at fault is alone. That image, like
all images that are not plain JPEGs, goes to the CPU, which decodes it or finds the reason, so that
reasons never depend on a GPU.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image

from pipeline.core.counters import StageCounters
from pipeline.core.errors import JobError
from pipeline.core.failures import RowError
from pipeline.core.printable import clean_message
from pipeline.core.watchdog import tick
from pipeline.preprocessing.decode import (
    RGB,
    DecodeLimits,
    as_tensor,
    load_image_ops,
    plain_jpeg_px,
)
from pipeline.preprocessing.geometry import Sizes, most_made_px
from pipeline.preprocessing.resizing import resize_and_crop
from pipeline.preprocessing.transform import TransformSpec

MAX_GROUP_ROWS = 64
MAX_GROUP_PX = 67_000_000
"""Pixels per group: 200 MB decoded, beside the model; resizing one image of this size takes 0.8 GB
of float32."""

Decode = Callable[[list[torch.Tensor]], list[torch.Tensor]]
"""Encoded JPEGs, uint8 (L,) each -> RGB uint8 (3, H, W) each on one device; raises if one fails."""


def group(sizes_px: Iterable[tuple[int, int]]) -> Iterator[list[int]]:
    """Yield groups of neighbouring rows, as large as the limits allow.

    Args:
        sizes_px: Row and pixel count per image; none exceeds MAX_GROUP_PX alone.
    """
    rows: list[int] = []
    held_px = 0
    for row, num_px in sizes_px:
        if rows and (len(rows) == MAX_GROUP_ROWS or held_px + num_px > MAX_GROUP_PX):
            yield rows
            rows, held_px = [], 0
        rows.append(row)
        held_px += num_px
    if rows:
        yield rows


def decode_group(encoded: Sequence[bytes], decode: Decode) -> list[torch.Tensor | None]:
    """Decode images together, halving groups that fail.

    Returns:
        RGB uint8 (3, H, W) per image, in order; None for an image that fails alone.
    """
    try:
        return [*decode([as_tensor(data) for data in encoded])]
    except Exception:  # noqa: BLE001  # any error of the decoder, out of memory included
        if len(encoded) == 1:
            return [None]
    # Outside `except`: the frames of the exception hold the tensors of the group.
    half = len(encoded) // 2
    return [*decode_group(encoded[:half], decode), *decode_group(encoded[half:], decode)]


@dataclass
class JpegGroups:
    """Decodes and transforms the plain JPEGs of a slice, each into its place in `images`."""

    encoded: pa.ChunkedArray
    images: npt.NDArray[np.uint8]
    """uint8 (N, H, W, C), written to."""
    sizes: Sizes
    """Of the N images, written to."""
    limits: DecodeLimits
    spec: TransformSpec
    decode: Decode
    decoded: StageCounters = field(default_factory=StageCounters)
    transformed: StageCounters = field(default_factory=StageCounters)

    def work(self, rows: Sequence[int]) -> list[int]:
        """Decode rows; return those left for the CPU, in order, which are not counted."""
        started = perf_counter()
        sizes_px = [(row, num_px) for row in rows if (num_px := self._plain_px(row))]
        self.decoded += StageCounters(busy_s=perf_counter() - started)
        done = {row for together in group(sizes_px) for row in self._work_on(together)}
        return [row for row in rows if row not in done]

    def _plain_px(self, row: int) -> int:
        tick()
        num_px = plain_jpeg_px(self.encoded[row].as_py(), self.limits) or 0
        return num_px if num_px <= MAX_GROUP_PX else 0

    def _work_on(self, rows: Sequence[int]) -> Iterator[int]:
        """Decode one group; yield the rows that are done."""
        tick()
        started = perf_counter()
        encoded: list[bytes] = [self.encoded[row].as_py() for row in rows]
        decoded = decode_group(encoded, self.decode)
        self.decoded += StageCounters(busy_s=perf_counter() - started)
        for row, data, image in zip(rows, encoded, decoded, strict=True):
            if image is not None and self._transform(row, image):
                size_px = int(image.shape[-1]), int(image.shape[-2])
                self.sizes.put(row, self.spec, size_px, size_px)
                self.decoded += StageCounters(1, 1, 0, len(data), image.numel())
                yield row

    def _transform(self, row: int, image: torch.Tensor) -> bool:
        started, is_done, place = perf_counter(), True, self.images[row]
        try:
            most_px = most_made_px(self.limits.max_image_px)
            crop = resize_and_crop(image, self.spec, most_px).permute(1, 2, 0)
            np.copyto(place, crop.cpu().numpy())
        except (RowError, RuntimeError):  # also if only the GPU is out of memory
            is_done = False
        self.transformed += StageCounters(busy_s=perf_counter() - started)
        if is_done:
            self.transformed += StageCounters(1, 1, 0, image.numel(), place.nbytes)
        return is_done


@functools.cache
def gpu_decoder() -> Decode:
    """Return nvJPEG on this process's GPU, after a test with one image.

    Raises:
        JobError: There is no GPU, or torchvision was built without nvJPEG.
    """
    if not torch.cuda.is_available():
        raise JobError(
            f"transform.jpeg_decoder = gpu: this worker's torch {torch.__version__} sees no CUDA "
            "device; install a CUDA build or set it to cpu"
        )
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    try:
        load_image_ops()
        _decode_on_gpu([as_tensor(buffer.getvalue())])
    except Exception as error:
        reason = clean_message(str(error), 200)
        raise JobError(
            f"transform.jpeg_decoder = gpu: this worker's torchvision cannot decode on its GPU "
            f"({reason}); install its CUDA build or set it to cpu"
        ) from error
    return _decode_on_gpu


def _decode_on_gpu(encoded: list[torch.Tensor]) -> list[torch.Tensor]:
    # What torchvision.io.decode_jpeg calls for a list and device "cuda".
    images: list[torch.Tensor] = torch.ops.image.decode_jpegs_cuda(
        encoded, RGB, torch.device("cuda")
    )
    torch.cuda.synchronize()  # so that errors are raised and time is counted here
    return images
