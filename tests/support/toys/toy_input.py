"""An input of another distribution: two tensors per row, first bytes and size of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch

from pipeline.core.arrays import features_from_arrow
from pipeline.core.failures import Failure, Reason, failure_columns, failures_of
from pipeline.core.figures import Counters, measure
from pipeline.core.schema import IMAGE
from pipeline.preprocessing.model_input import (
    BatchLimits,
    Cost,
    Input,
    Inputs,
    InputSettings,
    Limits,
    Slot,
)
from pipeline.preprocessing.normalise import Cast

STAGE, HEAD, SIZE = "peek", "head", "size"
HEAD_BYTES = 4
POINTS = {"pipeline.preprocessing": {"toy": "toy_input:ToyInput"}}
"""The entry point that brings it, for `toy_package.install`."""


@dataclass(frozen=True)
class ToyInput(Input):
    """`head`, float32 (B, 4), the first bytes; `size`, float32 (B, 1), how many there are."""

    name: ClassVar[str] = "toy"
    stage_names: ClassVar[tuple[str, ...]] = (STAGE,)
    takes: ClassVar[str] = ""
    cost: ClassVar[Cost] = "image"

    @classmethod
    def of(cls, settings: InputSettings) -> Self:
        return cls()

    @property
    def semantics(self) -> Mapping[str, int]:
        return {"toy_input": 1}

    def settings(self) -> dict[str, Any]:
        return {"input": self.name}

    def fields(self) -> list[pa.Field]:
        return [
            pa.field(HEAD, pa.list_(pa.float32(), HEAD_BYTES)),
            pa.field(SIZE, pa.list_(pa.float32(), 1)),
        ]

    def prepare(
        self, rows: pa.Table, counters: Counters, limits: Limits, num_threads: int = 1
    ) -> pa.Table:
        failures = failures_of(rows)
        head = np.zeros((rows.num_rows, HEAD_BYTES), np.float32)
        size = np.zeros((rows.num_rows, 1), np.float32)
        with measure(counters, STAGE) as done:
            for row, data in enumerate(rows.column(IMAGE).to_pylist()):
                if failures[row] is not None:
                    continue
                done.rows_in += 1
                if len(data) < HEAD_BYTES:
                    failures[row] = Failure(Reason.TRUNCATED, STAGE, f"{len(data)} bytes")
                    done.rows_quarantined += 1
                    continue
                done.rows_out += 1
                head[row] = np.frombuffer(data[:HEAD_BYTES], np.uint8)
                size[row] = len(data)
        kept = [name for name in rows.column_names if name != IMAGE]
        columns = {name: rows.column(name) for name in kept} | failure_columns(failures)
        for field, values in zip(self.fields(), (head, size), strict=True):
            columns[field.name] = pa.FixedSizeListArray.from_arrays(
                pa.array(values.reshape(-1)), values.shape[1]
            )
        return pa.table(columns)

    def arrays(self, rows: pa.Table) -> Inputs:
        return {name: features_from_arrow(rows.column(name)) for name in (HEAD, SIZE)}

    def slots(self, limits: BatchLimits) -> Mapping[str, Slot]:
        return {
            HEAD: Slot((limits.rows, HEAD_BYTES), "float32"),
            SIZE: Slot((limits.rows, 1), "float32"),
        }

    def normaliser(self, dtype: torch.dtype) -> torch.nn.Module:
        return Cast(dtype)


class Sizes(torch.nn.Module):
    """Tells files that begin as PNGs do from others, and gives their size."""

    def forward(self, size: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        is_png = (head[:, :1] == 0x89).to(size.dtype)
        return torch.cat([is_png, size], dim=1)


class Mixed(torch.nn.Module):
    """Has weights for both of its inputs, and takes them in another order than they come in."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.of_size, self.of_head = torch.nn.Linear(1, 3), torch.nn.Linear(HEAD_BYTES, 3)

    def forward(self, size: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.of_head(head)) - self.of_size(size)


def sizes() -> torch.nn.Module:
    return Sizes()
