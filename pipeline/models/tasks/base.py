"""What every task is: its columns, what is kept of a batch, and how two predictions agree.

`fields` runs on the driver and imports no torch; `reduce` runs on the device and keeps only what
is written; `columns` makes Arrow arrays of it. Schemas are declared by the job, never inferred.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.models.agreement import Agreement, AgreementLimits, compare_numbers

if TYPE_CHECKING:
    import torch

    from pipeline.job.job import Model

Arrays = dict[str, npt.NDArray[Any]]
"""What is kept of rows by name, each (N, ...)."""
Mask = npt.NDArray[np.bool_]
"""Which rows of a slice have a prediction, (N,)."""


class OutputError(ValueError):
    """The outputs are not what the job declares: no row is at fault."""


@dataclass(frozen=True)
class OutputSpec:
    """One named output of a model: its shape without the batch dimension."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TaskSpec:
    """What the job asks of a task, plain enough for JSON and for Ray."""

    kind: str
    """Its name in `TASKS`."""
    labels: tuple[str, ...] = ()
    top_k: int = 1
    embedding_dim: int = 0
    l2_norm: bool = False
    outputs: tuple[OutputSpec, ...] = ()
    targets: tuple[str, ...] = ()
    postprocess: str | None = None
    postprocess_sha256: str = ""
    """Digest of the source of the post-processing module."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form for fingerprints and manifests; labels as a digest."""
        values = asdict(self)
        labels = values.pop("labels")
        values["num_labels"] = len(labels)
        values["labels_sha256"] = hashlib.sha256("\n".join(labels).encode()).hexdigest()
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain


class Task(Protocol):
    """How one task turns outputs into columns. Subclass it; the defaults suit numbers."""

    spec: TaskSpec

    job_fields: ClassVar[tuple[str, ...]] = ()
    """Fields of the job's section `model` that belong to the task; others have no effect."""
    needs_labels: ClassVar[bool] = False
    """It needs the names of classes, from the job or the model."""
    takes_any_shape: ClassVar[bool] = False
    """It takes outputs of any shape, also maps."""
    has_golden: ClassVar[bool] = True
    """Golden rows can be compared."""
    has_golden_folders: ClassVar[bool] = False
    """Golden rows may be a folder of images by label."""

    @classmethod
    def problems(cls, model: Model) -> Iterator[str]:
        """Yield what is wrong with a job's section `model` for this task."""
        yield from ()

    def fields(self) -> list[pa.Field]:
        """Return the columns that the task adds."""
        ...

    def reduce(self, outputs: Any, num_rows: int) -> dict[str, torch.Tensor]:
        """Check the outputs of a batch and keep what is written, each (B, ...).

        Raises:
            OutputError: The outputs do not have the declared shape; names both.
        """
        ...

    def columns(self, arrays: Arrays, ok: Mask) -> dict[str, pa.Array]:
        """Make the task's columns for the rows of a slice; rows that are not ok are null."""
        ...

    def num_outputs(self) -> int | None:
        """Return how many outputs a model is built with; None takes the architecture as it is."""
        return None

    def compare(self, reference: Arrays, found: Arrays, limits: AgreementLimits) -> Agreement:
        """Compare what two runs keep of the same rows, each array (N, ...)."""
        return compare_numbers(reference, found, limits)

    def measured_columns(self) -> tuple[str, ...]:
        """Name the columns whose numbers are counted for drift; none counts nothing."""
        return ()

    def golden_columns(self) -> tuple[str, ...]:
        """Name the columns that golden rows must have beside their input."""
        return tuple(field.name for field in self.fields())

    def parse_golden(self, found: pa.Table) -> pa.Table:
        """Cast what golden rows say is expected; the input is gone.

        Raises:
            pa.ArrowException: A column is not what the task gives.
        """
        columns = self.golden_columns()
        return pa.table({name: found.column(name).cast(pa.float64()) for name in columns})

    def golden_arrays(self, expected: pa.Table) -> Arrays:
        """Return what `reduce` would keep of rows that are as expected, each (N, ...)."""
        ...

    def golden_differences(
        self, expected: pa.Table, found: Arrays, limits: AgreementLimits, max_score_diff: float
    ) -> list[str]:
        """Say of each golden row how it differs from what is expected; '' if it agrees.

        Args:
            expected: What `parse_golden` gave, N rows.
            found: What is kept of the same rows, each (N, ...).
            limits: How far a row may be off.
            max_score_diff: How far a score may be off if the row does not say.
        """
        agrees = self.compare(self.golden_arrays(expected), found, limits).agrees
        return ["" if ok else "other numbers than expected" for ok in agrees]

    def describe(self, row: Mapping[str, Any]) -> str:
        """Say in a few words what was predicted of a row, which is given by column."""
        return f"columns {', '.join(field.name for field in self.fields())}"


def require(output: Any, shape: tuple[int, ...], declared: str, what: str) -> torch.Tensor:
    """Check the shape of an output.

    Args:
        output: Of the model.
        shape: As it is to be.
        declared: What the job says of its last dimension, with a place for the number.
        what: It is.

    Raises:
        OutputError: It is something else.
    """
    import torch

    if not isinstance(output, torch.Tensor):
        raise OutputError(f"output is a {type(output).__name__}, expected a tensor {shape}: {what}")
    found = tuple(output.shape)
    if found != shape:
        if declared and found[:-1] == shape[:-1]:
            what = f"the model has {found[-1]} outputs, {declared.format(shape[-1])}"
        raise OutputError(f"output is {found}, expected {shape}: {what}")
    return output


def nested_type(shape: tuple[int, ...]) -> pa.DataType:
    kind = pa.float32()
    for size in reversed(shape):
        kind = pa.list_(kind, size)
    return kind


def nested(values: npt.NDArray[Any], ok: Mask) -> pa.Array:
    """Turn (N, a, b, ...) into fixed-size lists of fixed-size lists; rows not ok are null."""
    shape = values.shape[1:]
    array = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    if not shape:
        return pa.array(np.ascontiguousarray(values, dtype=np.float32), mask=~ok)
    for size in reversed(shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    assert len(array) == math.prod(shape[:1]) * len(values), "shapes multiply out"
    return pa.FixedSizeListArray.from_arrays(array, shape[0], mask=pa.array(~ok))
