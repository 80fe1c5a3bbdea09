"""The base of inputs whose rows are those of a table; the source joins their numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Self

import pyarrow as pa

from pipeline.core.figures.counters import Counters
from pipeline.core.semantics import SEMANTICS
from pipeline.preprocessing.input_facts import Columns, Cost, SliceRows
from pipeline.preprocessing.model_input import FEW_ROWS, BatchLimits, FixedShape, Limits
from pipeline.sources.columns.arrow_types import is_number

if TYPE_CHECKING:
    from pipeline.job.job import Job

_BATCH_ROWS = {False: 2_048, True: 16_384}
"""Whether it is on a GPU -> rows of a batch."""
_BATCH_BYTES = 16 * 2**20


class TableInput(FixedShape):
    """Base of inputs whose rows are those of a table."""

    name: ClassVar[str] = "features"
    stage_names: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[str] = ""
    cost: ClassVar[Cost] = "row"
    how_to_name: ClassVar[str] = "takes numbers: name their columns with source.features"

    @classmethod
    def slice_rows(cls, job: Job) -> SliceRows:
        """Return half a million rows, and a row group as one unit."""
        return SliceRows(524_288, 524_288, uncounted=32_768, few=8_192, max_units=1)

    @classmethod
    def columns_in(cls, rows: pa.Table, ids: Collection[str]) -> Sequence[Columns]:
        """Return those of numbers or of lists of them."""
        names = [each.name for each in rows.schema if _is_numeric(each.type)]
        return (Columns("features", [name for name in names if name not in ids], takes_all=True),)

    @property
    def semantics(self) -> Mapping[str, int]:
        return {"features": SEMANTICS["features"]}

    @property
    def is_approximate(self) -> bool:
        return False

    def exact(self) -> Self:
        return self

    def settings(self) -> None:
        return None

    def prepare(
        self, rows: pa.Table, counters: Counters, limits: Limits, num_threads: int = 1
    ) -> pa.Table:
        return rows


def _is_numeric(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_number(kind.value_type if is_list else kind)


def batch_of_numbers(num_numbers: int, *, is_on_gpu: bool) -> BatchLimits:
    """Return how large a batch is of rows with so many numbers: fewer of many."""
    rows = _BATCH_ROWS[is_on_gpu]
    while rows > FEW_ROWS[is_on_gpu] and 4 * rows * num_numbers > _BATCH_BYTES:
        rows //= 2
    return BatchLimits(rows)
