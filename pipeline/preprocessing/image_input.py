"""Images: encoded bytes become uint8 pixels of one size, normalised on the device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pyarrow as pa

from pipeline.core.arrays import images_from_arrow
from pipeline.core.counters import Counters
from pipeline.core.schema import GEOMETRY, HEIGHT_PX, IMAGE, WIDTH_PX
from pipeline.core.semantics import SEMANTICS
from pipeline.preprocessing.geometry import GEOMETRY_TYPE
from pipeline.preprocessing.model_input import (
    Arrays,
    BatchLimits,
    FixedShape,
    InputSettings,
    Limits,
    Slot,
)
from pipeline.preprocessing.transform import TransformSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ImageInput(FixedShape):
    """One tensor `image`, uint8 (B, H, W, C)."""

    transform: TransformSpec
    name: ClassVar[str] = "image"
    stage_names: ClassVar[tuple[str, ...]] = ("decode", "transform")
    takes: ClassVar[str] = "transform"

    @classmethod
    def of(cls, settings: InputSettings) -> Self:
        if settings.transform is None:
            raise ValueError("images need a transform")
        return cls(settings.transform)

    @property
    def semantics(self) -> Mapping[str, int]:
        return {area: SEMANTICS[area] for area in ("decode", "transform")}

    @property
    def is_approximate(self) -> bool:
        return self.transform.changes_pixels

    def exact(self) -> Self:
        return replace(self, transform=self.transform.exact())

    def settings(self) -> dict[str, Any]:
        return self.transform.to_dict()

    def fitted(self, fields: pa.Schema) -> Self:
        return self

    def fields(self) -> list[pa.Field]:
        return [
            pa.field(IMAGE, pa.binary(math.prod(self.transform.shape))),
            pa.field(GEOMETRY, GEOMETRY_TYPE),
        ]

    def published_fields(self) -> list[pa.Field]:
        """Return the size of the image, upright and before any resize; see `Sizes`."""
        return [pa.field(WIDTH_PX, pa.int32()), pa.field(HEIGHT_PX, pa.int32())]

    def prepare(
        self, rows: pa.Table, counters: Counters, limits: Limits, num_threads: int = 1
    ) -> pa.Table:
        from pipeline.preprocessing.decode import DecodeLimits
        from pipeline.preprocessing.images import preprocess

        return preprocess(rows, counters, DecodeLimits(*limits), self.transform, num_threads)

    def arrays(self, rows: pa.Table) -> Arrays:
        return {IMAGE: images_from_arrow(rows.column(IMAGE), self.transform.shape)}

    def slots(self, limits: BatchLimits) -> Mapping[str, Slot]:
        return {IMAGE: Slot((limits.rows, *self.transform.shape), "uint8")}

    def normaliser(self, dtype: torch.dtype) -> torch.nn.Module:
        from pipeline.preprocessing.normalise import NormaliseImages

        return NormaliseImages(self.transform.mean, self.transform.std, dtype)
