"""Task `tokens`: the entities of a text, with their places in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.core.arrays import as_array
from pipeline.core.printable import clean_message, first_names
from pipeline.core.schema import (
    END,
    ENTITIES,
    ENTITIES_FIELD,
    ENTITY_TEXT,
    LABEL,
    LABEL_ID,
    OFFSETS,
    SCORE,
    START,
    TEXT,
    WORD_IDS,
)
from pipeline.models.agreement import Agreement, AgreementLimits, within
from pipeline.models.outputs import OutputError, require
from pipeline.models.tasks.base import Arrays, Mask, Task, TaskSpec, as_lists
from pipeline.models.tasks.entities import Entities, Tokenised, entities_of

if TYPE_CHECKING:
    import torch

_Entries = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Tokens(Task):
    """Entities: neighbouring tokens of one label, by `aggregation`."""

    spec: TaskSpec
    job_fields: ClassVar[tuple[str, ...]] = ("labels", "aggregation")
    needs_labels: ClassVar[bool] = True
    is_per_token: ClassVar[bool] = True

    def fields(self) -> list[pa.Field]:
        return [ENTITIES_FIELD]

    def reduce(self, outputs: Any, num_rows: int) -> dict[str, torch.Tensor]:
        """Return of each token its best label and score, (B, L); for `average` all, (B, L, K)."""
        import torch

        length = outputs.shape[1] if isinstance(outputs, torch.Tensor) and outputs.ndim == 3 else 0
        shape = (num_rows, length, len(self.spec.labels))
        logits = require(outputs, shape, "model.labels {}", "logits, one per token and label")
        scores = torch.softmax(logits.float(), dim=2)
        if self.spec.aggregation == "average":
            return {SCORE: scores}
        best = scores.max(dim=2)
        return {SCORE: best.values, LABEL_ID: best.indices.to(torch.int32)}

    def columns(self, arrays: Arrays, ok: Mask, rows: pa.Table) -> dict[str, pa.Array]:
        entities = self._entities(arrays, ok, rows)
        texts = rows.column(TEXT).take(pa.array(entities.rows)).to_pylist()
        places = zip(texts, entities.starts.tolist(), entities.ends.tolist(), strict=True)
        entries = pa.StructArray.from_arrays(
            [
                pa.array(entities.starts),
                pa.array(entities.ends),
                pa.array([text[start:end] for text, start, end in places], pa.string()),
                pa.array(entities.labels, pa.string()),
                pa.array(entities.scores),
            ],
            fields=list(ENTITIES_FIELD.type.value_type),
        )
        return {ENTITIES: as_lists(entries, entities.rows, ok)}

    def _entities(self, arrays: Arrays, ok: Mask, rows: pa.Table) -> Entities:
        words, places = as_array(rows.column(WORD_IDS)), as_array(rows.column(OFFSETS))
        lengths = np.asarray(words.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))
        if lengths[ok].max(initial=0) > arrays[SCORE].shape[1]:
            raise OutputError(
                f"output is for {arrays[SCORE].shape[1]} tokens, and a row has "
                f"{lengths[ok].max()}: logits, one per token and label"
            )
        numbers = np.arange(len(lengths)).repeat(lengths)
        positions = np.arange(len(numbers)) - (lengths.cumsum() - lengths).repeat(lengths)
        word_ids = words.flatten().to_numpy(zero_copy_only=False)
        ends = places.flatten().to_numpy(zero_copy_only=False).reshape(-1, 2)
        real = (word_ids >= 0) & ok[numbers]
        at = numbers[real], positions[real]
        tokens = Tokenised(numbers[real], word_ids[real], *ends[real].T)
        label_ids = arrays[LABEL_ID][at] if LABEL_ID in arrays else None
        return entities_of(
            tokens, arrays[SCORE][at], label_ids, self.spec.labels, self.spec.aggregation
        )

    def compare(self, reference: Arrays, candidate: Arrays, limits: AgreementLimits) -> Agreement:
        """Compare the label of every token, and its score."""
        sides = _best(reference), _best(candidate)
        length = max(scores.shape[1] for _, scores in sides)
        (labels_a, a), (labels_b, b) = (
            tuple(np.pad(values, ((0, 0), (0, length - values.shape[1]))) for values in side)
            for side in sides
        )
        is_other = (labels_a != labels_b) & ((a != 0) | (b != 0))
        differences = np.abs(a.astype(np.float64) - b)
        return within(differences, limits.max_score_diff, ~is_other.any(axis=1))

    def differences(self, known: pa.Table, actual: pa.Table, limits: AgreementLimits) -> list[str]:
        """Compare labels, places and scores of entities."""
        pairs = zip(*(table.column(ENTITIES).to_pylist() for table in (known, actual)), strict=True)
        return [_difference(a, b, limits) for a, b in pairs]

    def measured_columns(self) -> tuple[str, ...]:
        return (ENTITIES,)

    def describe(self, row: Mapping[str, Any]) -> str:
        entries = row[ENTITIES]
        if not entries:
            return "no entities"
        shown = first_names(f'"{clean_message(e[ENTITY_TEXT])}" {_name(e)}' for e in entries)
        return f"entities {shown}"


def _best(arrays: Arrays) -> tuple[Any, Any]:
    """Return the best label and its score of each token, each (N, L); score 0: no token."""
    scores = arrays[SCORE]
    if LABEL_ID in arrays:
        return arrays[LABEL_ID], scores
    return scores.argmax(axis=2), scores.max(axis=2)


def _difference(known: _Entries, actual: _Entries, limits: AgreementLimits) -> str:
    """Say how the entities of a row differ from the known ones; '' if they agree."""
    wanted, have = ({(e[START], e[END], e[LABEL]): e for e in side} for side in (known, actual))
    for place in wanted.keys() & have.keys():
        score, now = wanted[place][SCORE], have[place][SCORE]
        if score is not None and not abs(score - now) <= limits.max_score_diff:
            return f"expected {_name(have[place])} {score:.4f}, found {now:.4f}"
    gone = [entity for place, entity in wanted.items() if place not in have]
    more = [entity for place, entity in have.items() if place not in wanted]
    for entity in (*gone, *more):
        near = [other for other in (*gone, *more) if _overlap(entity, other)]
        if limits.allows_ties and any(_may_tie(other, limits) for other in near):
            continue
        if entity in gone:
            return f"expected {_name(entity)}, found {', '.join(map(_name, actual)) or 'none'}"
        return f"expected no {_name(entity)}"
    return ""


def _overlap(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return bool(one[START] <= other[END] and other[START] <= one[END])


def _may_tie(entity: Mapping[str, Any], limits: AgreementLimits) -> bool:
    """Tell whether one of its tokens may have had two labels of one score, each at most a half.

    The score is the mean of its tokens', and it has no more tokens than characters.
    """
    length = max(1, entity[END] - entity[START])
    return bool(entity[SCORE] <= 1 - (0.5 - limits.max_score_diff) / length)


def _name(entity: Mapping[str, Any]) -> str:
    return f"{clean_message(entity[LABEL])} at {entity[START]}-{entity[END]}"
