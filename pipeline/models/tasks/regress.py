"""Task `regress`: one number per target, each a column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.core.schema import VALUE
from pipeline.models.outputs import require
from pipeline.models.tasks.base import Arrays, Mask, Task, TaskSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Regress(Task):
    """One number per target."""

    spec: TaskSpec
    job_fields: ClassVar[tuple[str, ...]] = ("targets",)

    def _names(self) -> tuple[str, ...]:
        return self.spec.targets or (VALUE,)

    def fields(self) -> list[pa.Field]:
        return [pa.field(name, pa.float32()) for name in self._names()]

    def reduce(self, outputs: Any, num_rows: int) -> dict[str, torch.Tensor]:
        import torch

        if isinstance(outputs, torch.Tensor) and outputs.ndim == 1:
            outputs = outputs[:, None]
        shape = (num_rows, len(self._names()))
        told = "model.targets has {}", "one number per target"
        values = require(outputs, shape, *told).float()
        return {VALUE: values}

    def columns(self, arrays: Arrays, ok: Mask, rows: pa.Table) -> dict[str, pa.Array]:
        values = arrays[VALUE]
        return {
            name: pa.array(np.ascontiguousarray(values[:, i]), mask=~ok)
            for i, name in enumerate(self._names())
        }

    def measured_columns(self) -> tuple[str, ...]:
        return self._names()

    def describe(self, row: Mapping[str, Any]) -> str:
        return ", ".join(f"{name} {row[name]:.4g}" for name in self._names())
