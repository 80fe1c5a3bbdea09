"""Task `embed`: one vector per row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.core.arrays import as_array
from pipeline.core.schema import EMBEDDING, END, START, WINDOWS
from pipeline.models.agreement import Agreement, AgreementLimits, compare_vectors
from pipeline.models.outputs import require
from pipeline.models.tasks.base import Arrays, Mask, Task, TaskSpec, as_lists
from pipeline.preprocessing.texts.windows import Windows

if TYPE_CHECKING:
    import torch


EMBED = "embed"
VECTOR_TYPES = {"float32": pa.float32(), "float16": pa.float16()}
"""`model.embedding_type` -> the type of the numbers of a vector."""
_LEAST_LENGTH = 1e-12
"""Shorter vectors are divided by this, as in torch."""


@dataclass(frozen=True)
class Embed(Task):
    """One vector per row."""

    spec: TaskSpec
    job_fields: ClassVar[tuple[str, ...]] = ("embedding_dim", "l2_norm", "embedding_type")
    takes_windows: ClassVar[bool] = True

    def fields(self) -> list[pa.Field]:
        # The length is unknown until a row has been predicted: see runs/preparing.
        number = VECTOR_TYPES[self.spec.embedding_type]
        vector = pa.field(EMBEDDING, pa.list_(number, self.spec.embedding_dim or -1))
        if not self.spec.has_windows:
            return [vector]
        places = [pa.field(START, pa.int64()), pa.field(END, pa.int64())]
        return [vector, pa.field(WINDOWS, pa.list_(pa.struct([*places, vector])))]

    def reduce(self, outputs: Any, num_rows: int) -> dict[str, torch.Tensor]:
        import torch

        if isinstance(outputs, torch.Tensor) and outputs.ndim > 2:
            outputs = outputs.flatten(1)  # a pooling layer gives (B, D, 1, 1)
        dim, model_dim = self.spec.embedding_dim, self.spec.model_dim
        shape = (num_rows, model_dim or dim or _last(outputs))
        vectors = require(outputs, shape, "model.embedding_dim is {}", "one vector per row").float()
        if model_dim:
            vectors = vectors[:, :dim]
        if self.spec.l2_norm:
            vectors = _normalised(vectors)
        # A number beyond float16 becomes infinite, and its row `non_finite`.
        is_half = self.spec.embedding_type == "float16"
        return {EMBEDDING: vectors.half() if is_half else vectors}

    def columns(self, arrays: Arrays, ok: Mask, rows: pa.Table) -> dict[str, pa.Array]:
        values = np.ascontiguousarray(arrays[EMBEDDING], self.spec.embedding_type)
        flat, size = pa.array(values.reshape(-1)), values.shape[1]
        vectors = pa.FixedSizeListArray.from_arrays(flat, size, mask=pa.array(~ok))
        return {EMBEDDING: vectors.cast(self.fields()[0].type)}

    def columns_of_windows(
        self, arrays: Arrays, ok: Mask, rows: pa.Table, windows: Windows
    ) -> dict[str, pa.Array]:
        """Return the windows, and the mean of their vectors, which gets length 1."""
        import torch

        is_kept = ok[windows.owners]
        vectors = arrays[EMBEDDING][is_kept]
        parts = self.columns({EMBEDDING: vectors}, np.ones(len(vectors), bool), rows)[EMBEDDING]
        spans = [pa.array(side) for side in windows.spans[is_kept].T]
        fields = [*self.fields()[1].type.value_type]
        entries = pa.StructArray.from_arrays([*spans, parts], fields=fields)
        means = _normalised(torch.from_numpy(windows.means(arrays[EMBEDDING]))).numpy()
        return {
            **self.columns({EMBEDDING: means}, ok, rows),
            WINDOWS: as_lists(entries, windows.owners[is_kept], ok),
        }

    def compare(self, reference: Arrays, candidate: Arrays, limits: AgreementLimits) -> Agreement:
        return compare_vectors(reference[EMBEDDING], candidate[EMBEDDING], limits.min_cosine)

    def differences(self, known: pa.Table, actual: pa.Table, limits: AgreementLimits) -> list[str]:
        """Compare the vectors; of windows of the same texts the places are the same."""
        vectors = known.drop_columns([WINDOWS]) if WINDOWS in known.column_names else known
        differences = super().differences(vectors, actual, limits)
        if WINDOWS not in known.column_names:
            return differences
        sides = [as_array(table.column(WINDOWS)) for table in (known, actual)]
        counts = [side.value_lengths().to_pylist() for side in sides]
        for row, (before, now) in enumerate(zip(*counts, strict=True)):
            if before != now:
                differences[row] = f"expected {before} windows, found {now}"
        if counts[0] == counts[1] and sum(counts[0]):
            one, other = (pa.table({EMBEDDING: s.flatten().field(EMBEDDING)}) for s in sides)
            owners = np.arange(len(differences)).repeat(counts[0]).tolist()
            for row, difference in zip(
                owners, super().differences(one, other, limits), strict=True
            ):
                differences[row] = differences[row] or difference
        return differences

    def measured_columns(self) -> tuple[str, ...]:
        return (EMBEDDING,)

    def golden_columns(self) -> tuple[str, ...]:
        return (EMBEDDING,)

    def parse_golden(self, golden: pa.Table) -> pa.Table:
        vectors = golden.column(EMBEDDING).to_pylist()
        dtype = pa.list_(pa.float64(), self.spec.embedding_dim)
        return pa.table({EMBEDDING: pa.array(vectors, dtype)})

    def describe(self, row: Mapping[str, Any]) -> str:
        return f"a vector of {len(row[EMBEDDING])} numbers"


def lacks_length(task: TaskSpec) -> bool:
    """Tell whether the length of vectors is unknown."""
    return task.kind == EMBED and not task.embedding_dim


def _last(outputs: Any) -> int:
    """Return the length of vectors that a model gives."""
    return int(outputs.shape[-1]) if getattr(outputs, "ndim", 0) else 0


def _normalised(vectors: torch.Tensor) -> torch.Tensor:
    """Return float32 (B, D) of length 1; scales first if squares exceed float32.

    Zeros stay zeros, and non-finite values stay non-finite.
    """
    import torch

    usual = torch.nn.functional.normalize(vectors, dim=1)
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    largest = vectors.abs().amax(dim=1, keepdim=True)
    scaled = torch.nn.functional.normalize(vectors / largest, dim=1)
    is_usual = (lengths.isfinite() & (lengths > _LEAST_LENGTH)) | (largest == 0)
    return torch.where(is_usual, usual, scaled)
