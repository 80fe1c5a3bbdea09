"""Task `score`: one number per row, such as how well two texts fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.core.schema import SCORE
from pipeline.models.outputs import require
from pipeline.models.tasks.base import Arrays, Mask, Task, TaskSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Score(Task):
    """One number per row: the model's output, or its sigmoid where the model says so."""

    spec: TaskSpec

    def fields(self) -> list[pa.Field]:
        return [pa.field(SCORE, pa.float32())]

    def reduce(self, outputs: Any, num_rows: int) -> dict[str, torch.Tensor]:
        import torch

        if isinstance(outputs, torch.Tensor) and outputs.ndim == 1:
            outputs = outputs[:, None]
        values = require(outputs, (num_rows, 1), "", "one score per row").float()[:, 0]
        if self.spec.activation == "sigmoid":
            # The sigmoid of infinity would be 1, and the row would pass for a good one.
            values = torch.where(values.isfinite(), torch.sigmoid(values), torch.nan)
        return {SCORE: values}

    def columns(self, arrays: Arrays, ok: Mask, rows: pa.Table) -> dict[str, pa.Array]:
        return {SCORE: pa.array(np.ascontiguousarray(arrays[SCORE], np.float32), mask=~ok)}

    def num_outputs(self) -> int | None:
        return 1

    def measured_columns(self) -> tuple[str, ...]:
        return (SCORE,)

    def describe(self, row: Mapping[str, Any]) -> str:
        return f"score {row[SCORE]:.4g}"
