"""Decode JPEGs in groups on a GPU; the CPU decodes the images that are not plain JPEGs.

The plain JPEGs of a slice (`plain_jpeg_px`) are decoded and transformed on the GPU, and copied into
the slice's buffer, a group at a time. A group that fails is halved until the image at fault is
alone. That image, like all images that are not plain JPEGs, goes to the CPU, which decodes it or
finds the reason, so that reasons never depend on a GPU. Some images go both ways (`gpu_trust`).
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image

from pipeline.core.device_errors import require_context
from pipeline.core.errors import JobError
from pipeline.core.failures import RowError
from pipeline.core.figures.counters import StageCounters
from pipeline.core.printable import clean_message
from pipeline.preprocessing.images.decode import (
    RGB,
    as_tensor,
    decode_image,
    load_image_ops,
    plain_jpeg_px,
)
from pipeline.preprocessing.images.geometry import Sizes, most_made_px
from pipeline.preprocessing.images.image_checks import DecodeLimits
from pipeline.preprocessing.images.jpeg.gpu_trust import Trust, trust_in
from pipeline.preprocessing.images.resizing import resize_and_crop
from pipeline.preprocessing.images.transform import TransformSpec
from pipeline.process.liveness import still_alive

MAX_GROUP_ROWS = 64
MAX_GROUP_PX = 67_000_000
"""Pixels per group: 200 MB decoded, beside the model; resizing one image of this size takes 0.8 GB
of float32."""

_being_read: deque[list[torch.Tensor]] = deque(maxlen=1)
"""Encoded images that the GPU's decoder was given last."""

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
    except Exception as error:  # noqa: BLE001  # any of the decoder, out of memory included
        require_context(error, _wait_for_all)
        if len(encoded) == 1:
            return [None]
    # Outside `except`: the frames of the exception hold the tensors of the group.
    half = len(encoded) // 2
    return [*decode_group(encoded[:half], decode), *decode_group(encoded[half:], decode)]


@dataclass
class JpegGroups:
    """Decodes and transforms the plain JPEGs of a slice, each into its place in `images`.

    On a GPU a group is decoded while the one before it is transformed and copied to the host.
    """

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
        """Decode rows; return those left for the CPU, in order, which are not counted.

        These are all of them once the decoder has made pixels that the CPU does not make.
        """
        trust = trust_in(self.decode)
        if trust.is_lost:
            return [*rows]
        started = perf_counter()
        sizes_px = [(row, num_px) for row in rows if (num_px := self._plain_px(row))]
        self.decoded += StageCounters(busy_s=perf_counter() - started)
        done: set[int] = set()
        before: _Made | None = None
        for together in group(sizes_px):
            made = self._make(together)
            if before is not None:
                done.update(self._put(before))
            before = made
        if before is not None:
            done.update(self._put(before))
        if not all(self._is_near(row, trust) for row in sorted(done) if trust.is_due()):
            self.decoded = self.transformed = StageCounters()
            return [*rows]
        return [row for row in rows if row not in done]

    def _plain_px(self, row: int) -> int:
        still_alive()
        num_px = plain_jpeg_px(self.encoded[row].as_py(), self.limits) or 0
        return num_px if num_px <= MAX_GROUP_PX else 0

    def _make(self, rows: Sequence[int]) -> _Made:
        """Decode and transform a group, and send what was made to the host without waiting."""
        still_alive()
        started = perf_counter()
        encoded: list[bytes] = [self.encoded[row].as_py() for row in rows]
        decoded = decode_group(encoded, self.decode)
        transforming = perf_counter()
        made = _Made()
        with _behind_decoding([image for image in decoded if image is not None]):
            crops = []
            for row, data, image in zip(rows, encoded, decoded, strict=True):
                crop = None if image is None else self._transform(image)
                if image is not None and crop is not None:
                    crops.append(crop)
                    size_px = int(image.shape[-1]), int(image.shape[-2])
                    made.rows.append((row, size_px, len(data), image.numel()))
            try:
                if crops:
                    made.send(torch.stack(crops))
            except RuntimeError as error:  # as above
                require_context(error, _wait_for_all)
                made.rows = []
        self.decoded += StageCounters(busy_s=transforming - started)
        self.transformed += StageCounters(busy_s=perf_counter() - transforming)
        return made

    def _transform(self, image: torch.Tensor) -> torch.Tensor | None:
        """Return the model input of an image, (H, W, C); None if the CPU is to find the reason."""
        try:
            most_px = most_made_px(self.limits.max_image_px)
            return resize_and_crop(image, self.spec, most_px).permute(1, 2, 0)
        except (RowError, RuntimeError) as error:  # also if only the GPU is out of memory
            require_context(error, _wait_for_all)
            return None

    def _put(self, made: _Made) -> Iterator[int]:
        """Write what was made of a group into the slice; yield its rows."""
        if not made.rows:
            return
        started, num_bytes = perf_counter(), self.images[0].nbytes
        try:
            crops = made.wait()
        except RuntimeError as error:  # of any work since the group before
            require_context(error, _wait_for_all)
            return
        for crop, (row, size_px, encoded_bytes, decoded_bytes) in zip(
            crops, made.rows, strict=True
        ):
            np.copyto(self.images[row], crop)
            self.sizes.put(row, self.spec, size_px, size_px)
            self.decoded += StageCounters(1, 1, 0, encoded_bytes, decoded_bytes)
            self.transformed += StageCounters(1, 1, 0, decoded_bytes, num_bytes)
            yield row
        self.transformed += StageCounters(busy_s=perf_counter() - started)

    def _is_near(self, row: int, trust: Trust) -> bool:
        """Tell whether the CPU makes about the same of a row."""
        try:
            image = decode_image(self.encoded[row].as_py(), self.limits)
            crop = resize_and_crop(image, self.spec, most_made_px(self.limits.max_image_px))
        except RowError:  # it is the CPU that says why
            return False
        return trust.hold(self.images[row], crop.permute(1, 2, 0).numpy())


@dataclass
class _Made:
    """What was made of a group, on its way to the host."""

    rows: list[tuple[int, tuple[int, int], int, int]] = field(default_factory=list)
    """Row, width and height, encoded bytes, decoded bytes of each."""
    _host: torch.Tensor | None = None
    _sent: Any = None
    """The event behind the copy; None on the CPU."""

    def send(self, crops: torch.Tensor) -> None:
        """Begin to copy crops, (G, H, W, C) and contiguous, to memory that a GPU writes to."""
        if not crops.is_cuda:
            self._host = crops
            return
        self._host = torch.empty(crops.shape, dtype=crops.dtype, pin_memory=True)
        self._host.copy_(crops, non_blocking=True)
        # Waiting for an event that is not blocking keeps a core busy.
        self._sent = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._sent.record()

    def wait(self) -> npt.NDArray[np.uint8]:
        """Return the crops on the host, (G, H, W, C); there must be rows."""
        if self._sent is not None:
            self._sent.synchronize()
            self._sent = None
        assert self._host is not None, "rows were sent"
        return self._host.numpy()


@functools.cache
def gpu_decoder() -> Decode:
    """Return nvJPEG on this process's GPU, after a test with one image.

    Raises:
        JobError: There is no GPU, the driver is too old, or torchvision was built without nvJPEG;
            in the words of whichever says so.
    """
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # says best why there is no GPU
        load_image_ops()
        _decode_on_gpu([as_tensor(buffer.getvalue())])
        torch.cuda.synchronize()
    except Exception as error:
        reason = clean_message(str(error), 200)
        raise JobError(
            f"transform.jpeg_decoder = gpu: torch {torch.__version__} cannot decode on a GPU here "
            f"({reason}); mend that, or set it to cpu"
        ) from error
    return _decode_on_gpu


@functools.cache
def _streams() -> tuple[Any, Any]:
    """Return the streams of this process's decoder: of decoding alone, and of all behind it."""
    return torch.cuda.Stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]


def _wait_for_all() -> None:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def _decode_on_gpu(encoded: list[torch.Tensor]) -> list[torch.Tensor]:
    decoding, _ = _streams()
    # The decoder has a stream of its own and writes at once into memory that it gets from the
    # current one, also if work is queued there that still reads what lay in that memory before.
    # In a stream in which nothing else ever is, no such memory can be: see `_behind_decoding`.
    with torch.cuda.stream(decoding):
        # What torchvision.io.decode_jpeg calls for a list and device "cuda".
        images: list[torch.Tensor] = torch.ops.image.decode_jpegs_cuda(
            encoded, RGB, torch.device("cuda")
        )
    # It may still read them; before the next group it waits until it has read all of this one.
    _being_read.append(encoded)
    return images


@contextlib.contextmanager
def _behind_decoding(images: Sequence[torch.Tensor]) -> Iterator[None]:
    """Queue the work of the body behind the decoding of images, without waiting for it.

    Their memory goes back to the stream of decoding only after that work is done.
    """
    if not images or not images[0].is_cuda:
        yield
        return
    decoding, behind = _streams()
    with torch.cuda.stream(behind):
        behind.wait_stream(decoding)
        for image in images:
            image.record_stream(behind)
        yield
