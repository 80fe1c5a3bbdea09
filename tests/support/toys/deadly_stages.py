"""The real decoding and reading, except that some input crashes them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.core.figures import Counters
from pipeline.core.schema import ERROR
from pipeline.execution.stages import Preprocessing
from pipeline.published.originals import OriginalFinder, Originals

CRASH = b"crash"


@dataclass(frozen=True)
class CrashingDecoder(Preprocessing):
    """The real decoding, but that some bytes at the end of an image crash it."""

    def __call__(self, counters: Counters, rows: pa.Table) -> pa.Table:
        good = rows.filter(rows.column(ERROR).is_null())
        if any(data.endswith(CRASH) for data in good.column("image").to_pylist()):
            ctypes.string_at(0)
        return super().__call__(counters, rows)


@dataclass(frozen=True)
class DeadlyFinder(OriginalFinder):
    """The real reading, but that row 3 of a shard crashes it."""

    def find(self, rows: Any, *wanted: Any) -> Originals:
        if any(row_id.endswith("#3") for row_id in rows.column("row_id").to_pylist()):
            ctypes.string_at(0)
        return super().find(rows, *wanted)
