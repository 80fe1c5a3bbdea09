"""Task `tokens`: the entities of a text, with their places, as transformers' pipeline makes them.

A label `B-PER` begins an entity of tag PER, `I-PER` continues one; a label without such a prefix is
its own tag and continues. Neighbours of one tag are one entity, and one is written unless it is of
tag `O`. With `first`, `average` and `max` the tokens of a word get one label before that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
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
from pipeline.preprocessing.texts.windows import Windows

if TYPE_CHECKING:
    import torch

_Entries = Sequence[Mapping[str, Any]]
OUTSIDE = "O"
Numbers = npt.NDArray[Any]


@dataclass(frozen=True)
class Tokens(Task):
    """Entities: neighbouring tokens of one label, by `aggregation`."""

    spec: TaskSpec
    job_fields: ClassVar[tuple[str, ...]] = ("labels", "aggregation")
    needs_labels: ClassVar[bool] = True
    is_per_token: ClassVar[bool] = True
    takes_windows: ClassVar[bool] = True

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
        return self._columns(arrays, ok, rows, None)

    def columns_of_windows(
        self, arrays: Arrays, ok: Mask, rows: pa.Table, windows: Windows
    ) -> dict[str, pa.Array]:
        """Return the entities of all tokens of a text, each as one window sees it."""
        return self._columns(arrays, ok, rows, windows)

    def _columns(
        self, arrays: Arrays, ok: Mask, rows: pa.Table, windows: Windows | None
    ) -> dict[str, pa.Array]:
        entities = self._entities(arrays, ok, rows, windows)
        texts = rows.column(TEXT).to_pylist()
        of_rows = (texts[row] for row in entities.rows.tolist())
        places = zip(of_rows, entities.starts.tolist(), entities.ends.tolist(), strict=True)
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

    def _entities(
        self, arrays: Arrays, ok: Mask, rows: pa.Table, windows: Windows | None
    ) -> Entities:
        words, places = as_array(rows.column(WORD_IDS)), as_array(rows.column(OFFSETS))
        lengths = np.asarray(words.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))
        if windows is None and lengths[ok].max(initial=0) > arrays[SCORE].shape[1]:
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
        at = at if windows is None else windows.places(*at)
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
    """Describe how the entities of a row differ from the known ones; '' if they agree."""
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


class Tokenised(NamedTuple):
    """T tokens that are not special, row after row in the order of the text; each (T,) int."""

    rows: Numbers
    words: Numbers
    """Ids of words, within the row."""
    starts: Numbers
    """Places in characters of the text."""
    ends: Numbers


class Entities(NamedTuple):
    """E entities in the order of the rows and of their places."""

    rows: Numbers
    """int64 (E,)."""
    starts: Numbers
    """int32 (E,)."""
    ends: Numbers
    labels: list[str]
    scores: Numbers
    """float32 (E,)."""


def entities_of(
    tokens: Tokenised,
    scores: Numbers,
    label_ids: Numbers | None,
    labels: Sequence[str],
    aggregation: str,
) -> Entities:
    """Make entities of tokens.

    Args:
        scores: Scores of the best label, float32 (T,); for `average` those of all labels, (T, K).
        label_ids: The best label, int32 (T,); None for `average`.
        aggregation: `none`, `simple`, `first`, `average` or `max`.
    """
    begins = np.arange(len(tokens.rows))
    if aggregation in ("first", "average", "max"):
        begins = _changes(tokens.rows, tokens.words)
        scores, label_ids = _of_words(begins, scores, label_ids, aggregation)
    assert label_ids is not None, "only `average` has no labels of tokens"
    rows, starts = tokens.rows[begins], tokens.starts[begins]
    ends = tokens.ends[_lasts(begins, len(tokens.rows))]
    names = np.array(labels, object)
    if aggregation != "none":
        tags = [_Tag.of(label) for label in labels]
        first = _group_starts(rows, label_ids, tags)
        last = _lasts(first, len(rows))
        scores = _means(scores, first)
        rows, starts, ends, label_ids = rows[first], starts[first], ends[last], label_ids[first]
        names = np.array([tag.shown for tag in tags], object)
    entity_labels = names[label_ids]
    kept = entity_labels != OUTSIDE
    return Entities(
        rows[kept],
        starts[kept].astype(np.int32),
        ends[kept].astype(np.int32),
        entity_labels[kept].tolist(),
        scores[kept].astype(np.float32),
    )


class _Tag(NamedTuple):
    name: str
    begins: bool
    shown: str

    @classmethod
    def of(cls, label: str) -> _Tag:
        """Split a label; the name that is written has no prefix, whatever its letter."""
        name = label[2:] if label.startswith(("B-", "I-")) else label
        return cls(name, label.startswith("B-"), label.split("-", 1)[-1])


def _of_words(
    begins: Numbers, scores: Numbers, label_ids: Numbers | None, aggregation: str
) -> tuple[Numbers, Numbers]:
    """Return score and label of each word, (W,) each; `begins` are the first tokens of words."""
    if label_ids is None:
        averages = _means(scores, begins)
        best = averages.argmax(axis=1) if len(averages) else np.zeros(0, np.int64)
        return averages[np.arange(len(best)), best], best
    if aggregation == "first" or not len(begins):
        return scores[begins], label_ids[begins]
    highest = np.maximum.reduceat(scores, begins)
    lengths = np.diff(np.append(begins, len(scores)))
    reached = np.flatnonzero(scores == highest.repeat(lengths))
    words = np.arange(len(begins)).repeat(lengths)
    chosen = reached[_changes(words[reached])]  # the first one of each word
    return scores[chosen], label_ids[chosen]


def _group_starts(rows: Numbers, label_ids: Numbers, tags: Sequence[_Tag]) -> Numbers:
    """Return where another entity begins: another row, another tag, or a label B-."""
    names = list(dict.fromkeys(tag.name for tag in tags))
    tag_ids = np.array([names.index(tag.name) for tag in tags])[label_ids]
    begins = np.array([tag.begins for tag in tags])[label_ids]
    begins[_changes(rows, tag_ids)] = True
    return np.flatnonzero(begins)


def _changes(*keys: Numbers) -> Numbers:
    """Return the places, (C,), whose keys, (T,) each, differ from those of the place before."""
    differs = np.zeros(len(keys[0]), bool)
    differs[:1] = True
    for key in keys:
        differs[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(differs)


def _lasts(begins: Numbers, size: int) -> Numbers:
    """Return the last place of each group that begins at `begins`, (G,), of `size` places."""
    return np.append(begins[1:], size)[: len(begins)] - 1


def _means(values: Numbers, begins: Numbers) -> Numbers:
    """Return the mean of each group, (G, ...)."""
    if not len(begins):
        return values
    lengths = np.diff(np.append(begins, len(values)))
    sums = np.add.reduceat(values, begins, axis=0)
    return sums / lengths.astype(np.float32).reshape(-1, *[1] * (values.ndim - 1))
