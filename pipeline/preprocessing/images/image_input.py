"""Input `image`: encoded bytes become uint8 pixels, which are normalised on the device.

All images become one size, or each keeps its own. A batch then has images of one size, and nothing
is padded.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pyarrow as pa

from pipeline.core.arrays import images_from_arrow, sized_from_arrow
from pipeline.core.figures import PREPARED, Counters
from pipeline.core.schema import (
    GEOMETRY,
    HEIGHT_PX,
    IMAGE,
    IMAGE_HEIGHT_PX,
    IMAGE_WIDTH_PX,
    WIDTH_PX,
)
from pipeline.core.semantics import SEMANTICS
from pipeline.preprocessing.encoded_rows import encoded_columns
from pipeline.preprocessing.images.geometry import GEOMETRY_TYPE
from pipeline.preprocessing.images.transform import TransformSpec
from pipeline.preprocessing.model_input import (
    BatchLimits,
    Columns,
    Cost,
    Input,
    Inputs,
    InputSettings,
    Limits,
    SliceRows,
    Slot,
)

if TYPE_CHECKING:
    import torch

    from pipeline.job.job import Job


_TRACED_PX = (96, 128)
"""Height and width of the traced batch if sizes vary: large enough for the usual strides, and not
square, which an exporter could take for a rule."""


@dataclass(frozen=True)
class ImageInput(Input):
    """One tensor `image`, uint8 (B, H, W, C); H and W may vary between batches."""

    transform: TransformSpec
    name: ClassVar[str] = "image"
    stage_names: ClassVar[tuple[str, ...]] = PREPARED
    takes: ClassVar[str] = "transform"
    cost: ClassVar[Cost] = "image"
    how_to_name: ClassVar[str] = (
        "takes images: name them with source.image_column or uri_column, or read image files"
    )

    @classmethod
    def of(cls, settings: InputSettings) -> Self:
        if settings.transform is None:
            raise ValueError("images need a transform")
        return cls(settings.transform)

    @classmethod
    def slice_rows(cls, job: Job) -> SliceRows:
        """Return fewer rows if images keep their sizes.

        All pixels of a slice are in memory at once, about ten times the bytes of JPEGs.
        """
        return SliceRows(uncounted=64, weight=3.0) if job.transform.may_vary else SliceRows()

    @classmethod
    def columns_in(cls, rows: pa.Table, ids: Collection[str]) -> Sequence[Columns]:
        """Return the columns of encoded images, of images in base64, and of URIs of images."""
        return encoded_columns(rows, "image")

    @property
    def semantics(self) -> Mapping[str, int]:
        return {area: SEMANTICS[area] for area in PREPARED}

    @property
    def is_approximate(self) -> bool:
        return self.transform.shrink_on_load

    def exact(self) -> Self:
        return replace(self, transform=self.transform.exact())

    def settings(self) -> dict[str, Any]:
        return self.transform.to_dict()

    def fields(self) -> list[pa.Field]:
        place = pa.field(GEOMETRY, GEOMETRY_TYPE)
        if self.transform.has_one_size:
            return [pa.field(IMAGE, pa.binary(math.prod(self.transform.shape))), place]
        sides = [pa.field(name, pa.int32()) for name in (IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX)]
        return [pa.field(IMAGE, pa.large_binary()), *sides, place]

    def published_fields(self) -> list[pa.Field]:
        """Return the upright size of the image before any resize; see `Sizes`."""
        return [pa.field(WIDTH_PX, pa.int32()), pa.field(HEIGHT_PX, pa.int32())]

    def prepare(
        self, rows: pa.Table, counters: Counters, limits: Limits, num_threads: int = 1
    ) -> pa.Table:
        from pipeline.preprocessing.images.image_checks import DecodeLimits
        from pipeline.preprocessing.images.image_rows import preprocess

        return preprocess(rows, counters, DecodeLimits(*limits), self.transform, num_threads)

    def arrays(self, rows: pa.Table) -> Inputs:
        if self.transform.has_one_size:
            return {IMAGE: images_from_arrow(rows.column(IMAGE), self.transform.shape)}
        heights, widths = rows.column(IMAGE_HEIGHT_PX), rows.column(IMAGE_WIDTH_PX)
        count = self.transform.num_channels
        return {IMAGE: sized_from_arrow(rows.column(IMAGE), heights, widths, count)}

    def slots(self, limits: BatchLimits) -> Mapping[str, Slot]:
        if self.transform.has_one_size:
            return {IMAGE: Slot((limits.rows, *self.transform.shape), "uint8")}
        shape = (limits.rows, *_TRACED_PX, self.transform.num_channels)
        return {IMAGE: Slot(shape, "uint8", varying=(0, 1, 2))}

    def normaliser(self, dtype: torch.dtype) -> torch.nn.Module:
        from pipeline.preprocessing.normalise import NormaliseImages

        return NormaliseImages(self.transform.mean, self.transform.std, dtype)
