"""Features: one float32 vector per row; the source joins it, so `prepare` does nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

import pyarrow as pa

from pipeline.core.arrays import features_from_arrow
from pipeline.core.errors import JobError
from pipeline.core.figures.counters import Counters
from pipeline.core.schema import FEATURES, TEXT_FEATURE
from pipeline.core.semantics import SEMANTICS
from pipeline.preprocessing.model_input import (
    Arrays,
    BatchLimits,
    Cost,
    FixedShape,
    InputSettings,
    Limits,
    Slot,
)

if TYPE_CHECKING:
    import torch


TABLE_ROWS = {False: 2_048, True: 16_384}
"""Whether it is on a GPU -> rows of a batch."""


@dataclass(frozen=True)
class FeatureInput(FixedShape):
    """One tensor `features`, float32 (B, F)."""

    num_features: int = 0
    """F; 0 until the shards are known."""
    name: ClassVar[str] = "features"
    stage_names: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[str] = ""
    cost: ClassVar[Cost] = "row"

    @classmethod
    def of(cls, settings: InputSettings) -> Self:
        return cls()

    @property
    def semantics(self) -> Mapping[str, int]:
        return {"features": SEMANTICS["features"]}

    @property
    def is_approximate(self) -> bool:
        return False

    def exact(self) -> Self:
        return self

    def usual_batch(self, *, is_on_gpu: bool) -> BatchLimits:
        return BatchLimits(TABLE_ROWS[is_on_gpu])

    def settings(self) -> None:
        return None

    def fitted(self, fields: pa.Schema) -> Self:
        texts = [n.removeprefix(TEXT_FEATURE) for n in fields.names if n.startswith(TEXT_FEATURE)]
        if texts:
            raise JobError(
                f"source.features: read_as: text, of {', '.join(texts)}, is for a model that takes "
                "each column by its name, and this one takes a vector of numbers"
            )
        if FEATURES not in fields.names:  # no shard could be read
            return self
        if fields.field(FEATURES).type.value_type != pa.float32():
            raise JobError(
                "source.features: read_as: float64 is for a model that takes each column by its "
                "name, and this one takes a vector of float32"
            )
        return replace(self, num_features=fields.field(FEATURES).type.list_size)

    def fields(self) -> list[pa.Field]:
        return [pa.field(FEATURES, pa.list_(pa.float32(), self.num_features))]

    def prepare(
        self, rows: pa.Table, counters: Counters, limits: Limits, num_threads: int = 1
    ) -> pa.Table:
        return rows

    def arrays(self, rows: pa.Table) -> Arrays:
        return {FEATURES: features_from_arrow(rows.column(FEATURES))}

    def slots(self, limits: BatchLimits) -> Mapping[str, Slot]:
        return {FEATURES: Slot((limits.rows, self.num_features), "float32")}

    def normaliser(self, dtype: torch.dtype) -> torch.nn.Module:
        from pipeline.preprocessing.normalise import Cast

        return Cast(dtype)
