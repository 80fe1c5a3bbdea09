"""Task `sparse`: weights of tokens of the vocabulary for a text, as SPLADE gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.core.printable import first_names
from pipeline.core.schema import TOKEN_ID, WEIGHT, WEIGHTS
from pipeline.models.agreement import Agreement, AgreementLimits, compare_vectors
from pipeline.models.outputs import OutputError, require
from pipeline.models.tasks.base import Arrays, Mask, Task, TaskSpec, as_lists

if TYPE_CHECKING:
    import torch

_ENTRY = pa.struct([pa.field(TOKEN_ID, pa.int32()), pa.field(WEIGHT, pa.float32())])
_NUM_WEIGHTS = "num_weights"
MOST = 4_096
"""The most weights of a text; those of a trained model are some hundreds."""


@dataclass(frozen=True)
class Sparse(Task):
    """The weights above 0, by token id."""

    spec: TaskSpec

    def fields(self) -> list[pa.Field]:
        return [pa.field(WEIGHTS, pa.list_(_ENTRY))]

    def reduce(self, outputs: Any, num_rows: int) -> dict[str, torch.Tensor]:
        """Return the largest weights and their token ids, (B, M), and how many are above 0."""
        size = tuple(outputs.shape)[-1] if getattr(outputs, "ndim", 0) else 0
        weights = require(outputs, (num_rows, size), "", "a weight of each token").float()
        best = weights.topk(min(size, MOST), dim=1)
        return {
            WEIGHT: best.values.clamp(min=0),
            TOKEN_ID: best.indices.int(),
            _NUM_WEIGHTS: (weights > 0).sum(dim=1),
        }

    def check(self, arrays: Arrays) -> None:
        most = int(arrays[_NUM_WEIGHTS].max(initial=0))
        if most > MOST:
            raise OutputError(
                f"a text has {most} weights above 0, task 'sparse' takes {MOST} at most: is the "
                "model trained for sparse vectors? task 'embed' takes others"
            )

    def columns(self, arrays: Arrays, ok: Mask, rows: pa.Table) -> dict[str, pa.Array]:
        places, at = np.nonzero((arrays[WEIGHT] > 0) & ok[:, None])
        ids = arrays[TOKEN_ID][places, at]
        order = np.lexsort((ids, places))
        values = [ids[order], arrays[WEIGHT][places, at][order].astype(np.float32)]
        entries = pa.StructArray.from_arrays([*map(pa.array, values)], fields=list(_ENTRY))
        return {WEIGHTS: as_lists(entries, places, ok)}

    def compare(self, reference: Arrays, candidate: Arrays, limits: AgreementLimits) -> Agreement:
        """Compare the vectors over the vocabulary by their cosines."""
        sides = (reference, candidate)
        size = 1 + max(int(side[TOKEN_ID].max(initial=0)) for side in sides)
        a, b = (np.zeros((len(side[WEIGHT]), size), np.float32) for side in sides)
        for vectors, side in ((a, reference), (b, candidate)):
            np.put_along_axis(vectors, side[TOKEN_ID].astype(np.int64), side[WEIGHT], axis=1)
        return compare_vectors(a, b, limits.min_cosine)

    def differences(self, known: pa.Table, actual: pa.Table, limits: AgreementLimits) -> list[str]:
        """Compare the vectors of published rows by their cosines."""
        pairs = zip(*(table.column(WEIGHTS).to_pylist() for table in (known, actual)), strict=True)
        return [_difference(a or [], b, limits) for a, b in pairs]

    def describe(self, row: Mapping[str, Any]) -> str:
        return f"weights of {_shown(row[WEIGHTS])}"


def _difference(known: Any, actual: Any, limits: AgreementLimits) -> str:
    """Describe how the weights of a row differ from the known ones; '' if they agree."""
    a, b = ({entry[TOKEN_ID]: entry[WEIGHT] for entry in side} for side in (known, actual))
    ids = sorted(a.keys() | b.keys())
    wanted, have = (np.array([[side.get(id_, 0.0) for id_ in ids]]) for side in (a, b))
    if not ids or compare_vectors(wanted, have, limits.min_cosine).agrees.all():
        return ""
    return f"expected weights of {_shown(known)}, found {_shown(actual)}"


def _shown(entries: Any) -> str:
    best = sorted(entries, key=lambda entry: -entry[WEIGHT])
    shown = first_names(f"{entry[TOKEN_ID]} {entry[WEIGHT]:.4f}" for entry in best)
    return f"{len(best)} tokens: {shown}" if best else "no token"
