"""Task `multi_vector`: a vector of each token of a text, for late interaction, as ColBERT's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.core.schema import EMBEDDINGS
from pipeline.models.agreement import Agreement, AgreementLimits, compare_vectors
from pipeline.models.outputs import OutputError, require
from pipeline.models.tasks.base import Arrays, Mask, Task, TaskSpec, as_lists
from pipeline.models.tasks.embed import VECTOR_TYPES

if TYPE_CHECKING:
    import torch

    from pipeline.job.model import Model

KEPT = "kept"
"""Output of the model, bool (B, L): the tokens whose vectors are written."""


@dataclass(frozen=True)
class MultiVector(Task):
    """The vectors of the tokens that the model keeps, in their order."""

    spec: TaskSpec
    job_fields: ClassVar[tuple[str, ...]] = ("embedding_type",)
    is_per_token: ClassVar[bool] = True

    @classmethod
    def needs_places(cls, model: Model) -> bool:
        return False

    def fields(self) -> list[pa.Field]:
        number = VECTOR_TYPES[self.spec.embedding_type]
        return [pa.field(EMBEDDINGS, pa.list_(pa.list_(number, self.spec.embedding_dim or -1)))]

    def reduce(self, outputs: Any, num_rows: int) -> dict[str, torch.Tensor]:
        """Return the vectors, (B, L, D), and which of them are kept, (B, L)."""
        if not isinstance(outputs, Mapping) or not {EMBEDDINGS, KEPT} <= outputs.keys():
            raise OutputError(
                f"expected a dict of {EMBEDDINGS!r}, float (B, L, D), and {KEPT!r}, bool (B, L)"
            )
        shape = tuple(outputs[EMBEDDINGS].shape)
        length, size = shape[1:] if len(shape) == 3 else (0, 0)
        expected = (num_rows, length, self.spec.embedding_dim or size)
        vectors = require(outputs[EMBEDDINGS], expected, "", "a vector of each token").float()
        kept = require(outputs[KEPT], expected[:2], "", "whether each vector is kept")
        is_half = self.spec.embedding_type == "float16"
        return {EMBEDDINGS: vectors.half() if is_half else vectors, KEPT: kept != 0}

    def columns(self, arrays: Arrays, ok: Mask, rows: pa.Table) -> dict[str, pa.Array]:
        places, at = np.nonzero(arrays[KEPT] & ok[:, None])
        values = np.ascontiguousarray(arrays[EMBEDDINGS][places, at], self.spec.embedding_type)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        of_row = self.fields()[0].type
        return {EMBEDDINGS: as_lists(vectors.cast(of_row.value_type), places, ok)}

    def compare(self, reference: Arrays, candidate: Arrays, limits: AgreementLimits) -> Agreement:
        """Compare the cosine of each vector; one that a side leaves out is zeros there."""
        length = max(side[KEPT].shape[1] for side in (reference, candidate))
        a, b = (_kept(side, length) for side in (reference, candidate))
        size = a.shape[2]
        tokens = compare_vectors(a.reshape(-1, size), b.reshape(-1, size), limits.min_cosine)
        agrees = np.logical_and.reduce(tokens.agrees.reshape(len(a), length), axis=1)
        return Agreement(agrees, tokens.worst)

    def differences(self, known: pa.Table, actual: pa.Table, limits: AgreementLimits) -> list[str]:
        """Compare the vectors of published rows by their cosines."""
        pairs = zip(
            *(table.column(EMBEDDINGS).to_pylist() for table in (known, actual)), strict=True
        )
        return [_difference(a or [], b or [], limits) for a, b in pairs]

    def describe(self, row: Mapping[str, Any]) -> str:
        return f"{len(row[EMBEDDINGS])} vectors"


def _kept(side: Arrays, length: int) -> Any:
    """Return the vectors of a side, (N, length, D), with zeros for those that it leaves out."""
    vectors = np.where(side[KEPT][:, :, None], side[EMBEDDINGS], 0)
    return np.pad(vectors, ((0, 0), (0, length - vectors.shape[1]), (0, 0)))


def _difference(known: Any, actual: Any, limits: AgreementLimits) -> str:
    """Describe how the vectors of a row differ from the known ones; '' if they agree."""
    if len(known) != len(actual):
        return f"expected {len(known)} vectors, found {len(actual)}"
    if not known:
        return ""
    agreement = compare_vectors(np.array(known), np.array(actual), limits.min_cosine)
    if agreement.agrees.all():
        return ""
    first = int(agreement.agrees.argmin()) + 1
    return f"expected the same vector {first}, found others: least cosine {agreement.worst:.5f}"
