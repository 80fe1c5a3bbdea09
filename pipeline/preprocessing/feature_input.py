"""Features: one float32 vector per row; the source joins it, so `prepare` does nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import pyarrow as pa

from pipeline.core.arrays import features_from_arrow
from pipeline.core.errors import JobError
from pipeline.core.schema import FEATURES, TEXT_FEATURE, WIDTHS
from pipeline.preprocessing.column_input import ColumnInput, TableInput, batch_of_numbers
from pipeline.preprocessing.model_input import FEW_ROWS, Arrays, BatchLimits, InputSettings, Slot

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class FeatureInput(TableInput):
    """One tensor `features`, float32 (B, F)."""

    num_features: int = 0
    """F; 0 until the shards are known."""
    has_lists: bool = False
    """Whether some of them are a list of the shards."""
    num_taken: int | None = None
    """How many the model takes; None: it does not say."""

    @classmethod
    def of(cls, settings: InputSettings) -> TableInput:
        """Make the input; that of columns if the model takes each by its name."""
        if settings.columns:
            return ColumnInput.of(settings)
        return cls(num_taken=settings.num_features)

    def usual_batch(self, *, is_on_gpu: bool) -> BatchLimits:
        """Return fewer of many features, and of lists, which may be sequences."""
        if self.has_lists:
            return BatchLimits(FEW_ROWS[is_on_gpu])
        return batch_of_numbers(self.num_features, is_on_gpu=is_on_gpu)

    def fitted(self, fields: pa.Schema) -> Self:
        texts = [n.removeprefix(TEXT_FEATURE) for n in fields.names if n.startswith(TEXT_FEATURE)]
        if texts:
            raise JobError(
                f"source.features: read_as: text, of {', '.join(texts)}, is for a model that takes "
                "each column by its name, and this one takes a vector of numbers"
            )
        if FEATURES not in fields.names:  # no shard could be read
            return self
        vector = fields.field(FEATURES)
        if vector.type.value_type != pa.float32():
            raise JobError(
                "source.features: read_as: float64 is for a model that takes each column by its "
                "name, and this one takes a vector of float32"
            )
        if self.num_taken not in (None, vector.type.list_size):
            raise JobError(
                f"source.features: the columns make {vector.type.list_size} numbers a row, the "
                f"model takes {self.num_taken}"
            )
        has_lists = WIDTHS in (vector.metadata or {})
        return replace(self, num_features=vector.type.list_size, has_lists=has_lists)

    def fields(self) -> list[pa.Field]:
        return [pa.field(FEATURES, pa.list_(pa.float32(), self.num_features))]

    def arrays(self, rows: pa.Table) -> Arrays:
        return {FEATURES: features_from_arrow(rows.column(FEATURES))}

    def slots(self, limits: BatchLimits) -> Mapping[str, Slot]:
        return {FEATURES: Slot((limits.rows, self.num_features), "float32")}

    def normaliser(self, dtype: torch.dtype) -> torch.nn.Module:
        from pipeline.preprocessing.normalise import Cast

        return Cast(dtype)
