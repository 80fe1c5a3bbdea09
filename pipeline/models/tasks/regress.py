"""Tasks `regress` and `score`: one number per target, each a column; how well two texts fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.core.schema import SCORE, VALUE
from pipeline.models.outputs import require
from pipeline.models.tasks.base import Arrays, Mask, Task, TaskSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Regress(Task):
    """One number per target."""

    spec: TaskSpec
    job_fields: ClassVar[tuple[str, ...]] = ("targets",)
    column: ClassVar[str] = VALUE
    """The only one if the job names no targets."""
    declared: ClassVar[tuple[str, str]] = ("model.targets has {}", "one number per target")
    """As `require` takes them."""

    def _names(self) -> tuple[str, ...]:
        return self.spec.targets or (self.column,)

    def fields(self) -> list[pa.Field]:
        return [pa.field(name, pa.float32()) for name in self._names()]

    def reduce(self, outputs: Any, num_rows: int) -> dict[str, torch.Tensor]:
        import torch

        if isinstance(outputs, torch.Tensor) and outputs.ndim == 1:
            outputs = outputs[:, None]
        shape = (num_rows, len(self._names()))
        return {self.column: require(outputs, shape, *self.declared).float()}

    def columns(self, arrays: Arrays, ok: Mask, rows: pa.Table) -> dict[str, pa.Array]:
        values = arrays[self.column]
        return {
            name: pa.array(np.ascontiguousarray(values[:, i], np.float32), mask=~ok)
            for i, name in enumerate(self._names())
        }

    def measured_columns(self) -> tuple[str, ...]:
        return self._names()

    def describe(self, row: Mapping[str, Any]) -> str:
        return ", ".join(f"{name} {row[name]:.4g}" for name in self._names())


@dataclass(frozen=True)
class Score(Regress):
    """One number per row: the model's output, or its sigmoid where the model says so."""

    job_fields: ClassVar[tuple[str, ...]] = ()
    column: ClassVar[str] = SCORE
    declared: ClassVar[tuple[str, str]] = ("", "one score per row")
    instead: ClassVar[Mapping[str, str]] = {
        "choices": "with the whole prompt as model.prompt and its two answers as model.choices",
    }

    def reduce(self, outputs: Any, num_rows: int) -> dict[str, torch.Tensor]:
        import torch

        [(name, values)] = super().reduce(outputs, num_rows).items()
        if self.spec.activation == "sigmoid":
            # The sigmoid of infinity would be 1, and the row would pass for a good one.
            values = torch.where(values.isfinite(), torch.sigmoid(values), torch.nan)
        return {name: values}

    def num_outputs(self) -> int | None:
        return 1
