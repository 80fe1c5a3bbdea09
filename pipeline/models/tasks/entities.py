"""From the labels of tokens to entities, as transformers' TokenClassificationPipeline does it.

A label `B-PER` begins an entity of tag PER, `I-PER` continues one; a label without such a prefix is
its own tag and continues. Neighbours of one tag are one entity, and one is written unless it is of
tag `O`. With `first`, `average` and `max` the tokens of a word get one label before that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

OUTSIDE = "O"
Numbers = npt.NDArray[Any]


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
        tokens: T tokens.
        scores: Of the best label, float32 (T,); for `average` of all labels, (T, K).
        label_ids: The best label, int32 (T,); None for `average`.
        labels: K names.
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
        """Split a label; what is written leaves out any prefix, also one of other letters."""
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
