"""A task unknown to the pipeline: the spread of the outputs of a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import torch

from pipeline.models.outputs import OutputError
from pipeline.models.tasks.base import Arrays, Mask, Task, TaskSpec

NAME = "spread"


@dataclass(frozen=True)
class Spread(Task):
    """One float32 per row: the largest output less the smallest."""

    spec: TaskSpec
    runtimes: ClassVar[tuple[str, ...] | None] = ("eager", "onnxruntime", "openvino")
    reduces: ClassVar[tuple[str, ...]] = ("classify", "multilabel", "regress")

    def fields(self) -> list[pa.Field]:
        return [pa.field(NAME, pa.float32())]

    def reduce(self, outputs: Any, num_rows: int) -> dict[str, torch.Tensor]:
        if not isinstance(outputs, torch.Tensor) or outputs.shape[:1] != (num_rows,):
            raise OutputError(f"expected a tensor ({num_rows}, ...)")
        flat = outputs.flatten(1).float()
        return {NAME: flat.amax(1) - flat.amin(1)}

    def columns(self, arrays: Arrays, ok: Mask, rows: pa.Table) -> dict[str, pa.Array]:
        return {NAME: pa.array(arrays[NAME], pa.float32(), mask=~ok)}

    def measured_columns(self) -> tuple[str, ...]:
        return (NAME,)
