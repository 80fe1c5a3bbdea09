"""Decode and transform the images of a slice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pipeline.core.arrays import images_to_arrow, sized_to_arrow
from pipeline.core.failures import failure_columns
from pipeline.core.figures import Counters
from pipeline.core.schema import IMAGE, IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX
from pipeline.preprocessing.encoded_rows import Step, prepare_rows
from pipeline.preprocessing.images.decode_image import decode_sized
from pipeline.preprocessing.images.geometry import Sizes, most_made_px, shrink_factor
from pipeline.preprocessing.images.image_checks import DecodeLimits
from pipeline.preprocessing.images.own_transform import step_of, transform_by
from pipeline.preprocessing.images.resizing import resize_and_crop
from pipeline.preprocessing.images.transform import TransformSpec


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
        The same rows with `image` as fixed-size binary, uint8 (H, W, C), zeros if `error` is set;
        or with the columns of `VaryingSizes`; and with the columns of `Sizes`.

    Raises:
        JobError: The user's own transform cannot be built.
    """
    pixels, sizes = pixels_of(spec, rows.num_rows), Sizes(rows.num_rows)
    shrink = partial(shrink_factor, spec) if spec.shrink_on_load else None

    def decode(row: int, data: bytes) -> tuple[torch.Tensor, int]:
        decoded = decode_sized(data, limits, shrink)
        sizes.put(row, spec, decoded.size_px, decoded.decoded_px)
        return decoded.pixels, decoded.pixels.numel()

    def transform(thread: int) -> Step:
        make = _maker(spec, limits, thread)
        return lambda row, image: (None, pixels.put(row, make(image)))

    transforms = [transform(thread) for thread in range(num_threads)]
    failures = prepare_rows(rows, IMAGE, decode, transforms, counters)
    columns = {name: rows.column(name) for name in rows.column_names}
    columns.update(pixels.columns())
    columns.update(sizes.columns())
    columns.update(failure_columns(failures))
    return pa.table(columns)


def _maker(
    spec: TransformSpec, limits: DecodeLimits, thread: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the transform of an image into model input, uint8 (C, H, W): ours or the user's."""
    if spec.factory is None:
        return partial(resize_and_crop, spec=spec, max_px=most_made_px(limits.max_image_px))
    step = step_of(spec, thread)
    return partial(transform_by, step, spec=spec, max_px=limits.max_image_px)


class OneSize:
    """The model input of N images of one size, in one buffer; zeros for rows that have failed."""

    def __init__(self, num_rows: int, shape: tuple[int, int, int]) -> None:
        """Take N, and (H, W, C) of each."""
        self.images = np.zeros((num_rows, *shape), np.uint8)

    def put(self, row: int, image: torch.Tensor) -> int:
        """Copy the model input of a row, uint8 (C, H, W); return its bytes."""
        place: npt.NDArray[np.uint8] = self.images[row]
        np.copyto(place, image.permute(1, 2, 0).numpy())
        return place.nbytes

    def columns(self) -> dict[str, pa.Array]:
        """Return the columns of `ImageInput.fields` that hold the images."""
        return {IMAGE: images_to_arrow(self.images)}


class VaryingSizes:
    """Images of different sizes."""

    def __init__(self, num_rows: int) -> None:
        self.images: list[npt.NDArray[np.uint8] | None] = [None] * num_rows

    def put(self, row: int, image: torch.Tensor) -> int:
        # A copy: the user's transform may reuse the memory for the next image.
        pixels = np.array(image.permute(1, 2, 0).numpy(), order="C")
        self.images[row] = pixels
        return pixels.nbytes

    def columns(self) -> dict[str, pa.Array]:
        pixels, heights, widths = sized_to_arrow(self.images)
        return {IMAGE: pixels, IMAGE_HEIGHT_PX: heights, IMAGE_WIDTH_PX: widths}


def pixels_of(spec: TransformSpec, num_rows: int) -> OneSize | VaryingSizes:
    """Return the container for the model input of N rows."""
    return OneSize(num_rows, spec.shape) if spec.has_one_size else VaryingSizes(num_rows)
