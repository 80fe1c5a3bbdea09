"""Tasks `classify`, `zero_shot`, `choices`: the best label of each row, its score, the top k.

Labels of `zero_shot` and `choices` are texts of the job: a text encoder, or a model of entailment,
compares rows with prompts; a language model says how likely each answer is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.core.printable import clean_message
from pipeline.core.schema import (
    CLASSIFY_FIELDS,
    LABEL,
    LABEL_ID,
    MAX_TOP_K,
    MAX_TOP_K_FIELD,
    SCORE,
    TOP_K,
)
from pipeline.job.prompt_places import parts_of
from pipeline.models.agreement import Agreement, AgreementLimits, entry_differences, within
from pipeline.models.outputs import require
from pipeline.models.tasks import scores
from pipeline.models.tasks.base import Arrays, Mask, Task, TaskSpec
from pipeline.preprocessing.texts.windows import Windows

if TYPE_CHECKING:
    import torch

    from pipeline.job.model import Model

_TOLERANCE = "tolerance"
"""Column of golden rows: tolerance of the row's score."""
PLACE = "{text}"
"""Where a prompt has the text of a row."""


@dataclass(frozen=True)
class Classify(Task):
    """The best labels with their probabilities."""

    spec: TaskSpec
    job_fields: ClassVar[tuple[str, ...]] = ("top_k", "labels", "scores")
    scores_of_logits: ClassVar[str] = scores.SOFTMAX
    needs_labels: ClassVar[bool] = True
    has_golden_folders: ClassVar[bool] = True
    takes_windows: ClassVar[bool] = True
    labels_field: ClassVar[str] = "model.labels"
    """Field of the job that the labels come from."""

    def fields(self) -> list[pa.Field]:
        return [*CLASSIFY_FIELDS, *([MAX_TOP_K_FIELD] if self.spec.has_windows else [])]

    def reduce(self, outputs: Any, num_rows: int) -> dict[str, torch.Tensor]:
        import torch

        shape, declared = (num_rows, len(self.spec.labels)), f"{self.labels_field} {{}}"
        values = require(outputs, shape, declared, "one output per label").float()
        label_scores, beside = scores.scores_of(values, self.spec.scores, self.scores_of_logits)
        # The mean of several windows needs all scores.
        top = label_scores.topk(shape[1] if self.spec.has_windows else self.spec.top_k, dim=1)
        return {SCORE: top.values, LABEL_ID: top.indices.to(torch.int32), **beside}

    def columns(self, arrays: Arrays, ok: Mask, rows: pa.Table) -> dict[str, pa.Array]:
        names = pa.array(self.spec.labels, pa.string())
        scores, ids = arrays[SCORE], arrays[LABEL_ID]
        num_rows, top_k = ids.shape
        flat = pa.array(ids.reshape(-1))
        entries = pa.StructArray.from_arrays(
            [names.take(flat), flat, pa.array(scores.reshape(-1))], names=[LABEL, LABEL_ID, SCORE]
        )
        offsets = np.arange(0, (num_rows + 1) * top_k, top_k, dtype=np.int32)
        best = pa.array(np.ascontiguousarray(ids[:, 0]), mask=~ok)
        return {
            LABEL: names.take(best),
            LABEL_ID: best,
            SCORE: pa.array(np.ascontiguousarray(scores[:, 0]), mask=~ok),
            TOP_K: pa.ListArray.from_arrays(pa.array(offsets), entries, mask=pa.array(~ok)),
        }

    def columns_of_windows(
        self, arrays: Arrays, ok: Mask, rows: pa.Table, windows: Windows
    ) -> dict[str, pa.Array]:
        """Return the columns of the mean scores, and the best labels by the maxima."""
        label_scores = np.empty_like(arrays[SCORE])
        np.put_along_axis(label_scores, arrays[LABEL_ID], arrays[SCORE], axis=1)
        means, maxima = (
            self.columns(self._best(values), ok, rows)
            for values in (windows.means(label_scores), windows.maxima(label_scores))
        )
        return {**means, MAX_TOP_K: maxima[TOP_K]}

    def _best(self, label_scores: Any) -> Arrays:
        """Return the best labels of scores (N, K), as `reduce` does."""
        ids = np.argsort(-label_scores, axis=1, kind="stable")[:, : self.spec.top_k]
        return {SCORE: np.take_along_axis(label_scores, ids, axis=1), LABEL_ID: ids.astype("i4")}

    def num_outputs(self) -> int | None:
        return len(self.spec.labels)

    def compare(self, reference: Arrays, candidate: Arrays, limits: AgreementLimits) -> Agreement:
        """Compare the best labels; where ties are allowed, one that is about as likely will do."""
        a, b = (arrays[SCORE].astype(np.float64) for arrays in (reference, candidate))
        wanted, ids = reference[LABEL_ID][:, :1], candidate[LABEL_ID]
        same = (wanted == ids[:, :1])[:, 0]
        if limits.allows_ties:
            is_listed = ids == wanted
            least = np.where(is_listed.any(axis=1), 0.0, b[:, -1])  # for a label that is not listed
            score = np.where(is_listed, b, 0.0).sum(axis=1) + least
            same |= score >= b[:, 0] - limits.max_score_diff
        return within(np.abs(a[:, 0] - b[:, 0]), limits.max_score_diff, same)

    def measured_columns(self) -> tuple[str, ...]:
        return (SCORE,)

    def golden_columns(self) -> tuple[str, ...]:
        return (LABEL,)

    def parse_golden(self, golden: pa.Table) -> pa.Table:
        """Return the label, and the score and its tolerance if the golden rows have them."""
        columns = {LABEL: golden.column(LABEL).cast(pa.string())}
        for name in (SCORE, _TOLERANCE):
            if name in golden.column_names:
                columns[name] = golden.column(name).cast(pa.float64())
        return pa.table(columns)

    def differences(self, known: pa.Table, actual: pa.Table, limits: AgreementLimits) -> list[str]:
        """Compare labels and scores, with ties all of `top_k`: see `_published_difference`."""
        is_published = limits.allows_ties and TOP_K in known.column_names
        differ = self._published_difference if is_published else _difference
        pairs = zip(known.to_pylist(), actual.to_pylist(), strict=True)
        return [differ(a, b, limits.max_score_diff) for a, b in pairs]

    def _published_difference(
        self, known: Mapping[str, Any], actual: Mapping[str, Any], limit: float
    ) -> str:
        """Describe how published rows differ; either of two labels of one score may be the best.

        What one side does not list is at most its least score there.
        """
        for row in (known, actual):
            best = row[TOP_K][0]
            if (row[LABEL], row[LABEL_ID]) != (best[LABEL], best[LABEL_ID]):
                return f"label {row[LABEL]!r} is not the best of top_k, {best[LABEL]!r}"
        before, now = _listed(known), _listed(actual)
        least = self._least(before), self._least(now)
        return ", ".join(entry_differences(before, now, least, limit))

    def _least(self, listed: Mapping[str, float]) -> float:
        """Return the score that a label without an entry has at most."""
        if len(listed) == len(self.spec.labels):
            return 0.0
        least = min(listed.values())
        adds_up = self.spec.scores != scores.SIGMOID
        return min(least, max(0.0, 1.0 - sum(listed.values()))) if adds_up else least

    def describe(self, row: Mapping[str, Any]) -> str:
        count = len(self.spec.labels)
        label = clean_message(row[LABEL])
        return f'label "{label}" {row[SCORE]:.2f}, {count} outputs, {count} labels'


def _listed(row: Mapping[str, Any]) -> dict[str, float]:
    """Return label -> score of the best label and of `top_k`."""
    listed = {entry[LABEL]: entry[SCORE] for entry in row[TOP_K]} | {row[LABEL]: row[SCORE]}
    return {label: _number(score) for label, score in listed.items()}


def _difference(known: Mapping[str, Any], actual: Mapping[str, Any], limit: float) -> str:
    wanted, tolerance = known.get(SCORE), known.get(_TOLERANCE)
    tolerance = limit if tolerance is None else tolerance
    score = _number(actual[SCORE])
    is_near = wanted is None or abs(wanted - score) <= tolerance
    if actual[LABEL] == known[LABEL] and is_near:
        return ""
    expected = f"{known[LABEL]!r}" + ("" if wanted is None else f" {wanted:.4f}")
    return f"expected {expected}, found {actual[LABEL]!r} {score:.4f}"


def _number(score: float | None) -> float:
    """Return a score; NaN for a null, which no prediction has."""
    return math.nan if score is None else score


@dataclass(frozen=True)
class ZeroShot(Classify):
    """The best prompts with their probabilities."""

    job_fields: ClassVar[tuple[str, ...]] = ("prompts", "top_k", "scores")
    takes_windows: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    labels_field: ClassVar[str] = "model.prompts"
    too_few: ClassVar[str] = (
        "task 'zero_shot' needs prompts, at least two texts or a mapping of label to text"
    )

    @classmethod
    def problems(cls, model: Model) -> Iterator[str]:
        labels = cls.job_labels(model)
        if len(labels) < 2:
            yield cls.too_few
        repeated = [label for label in dict.fromkeys(labels) if labels.count(label) > 1]
        if repeated:
            yield f"{cls._field()}: {repeated[0]!r} is there more than once"

    @classmethod
    def job_labels(cls, model: Model) -> tuple[str, ...]:
        return tuple(getattr(model, cls._field()))

    @classmethod
    def _field(cls) -> str:
        return cls.labels_field.removeprefix("model.")

    def num_outputs(self) -> int | None:
        return None


@dataclass(frozen=True)
class Choices(ZeroShot):
    """The most likely answers; scores are the softmax of mean log-likelihoods."""

    other_engines: ClassVar[tuple[str, ...]] = ("vllm",)
    runtimes: ClassVar[tuple[str, ...] | None] = ("eager",)
    job_fields: ClassVar[tuple[str, ...]] = (
        *("choices", "prompt", "messages", "prior_corrected", "top_k"),
    )
    labels_field: ClassVar[str] = "model.choices"
    too_few: ClassVar[str] = (
        "task 'choices' needs choices, at least two answers; a text: --set model.task=generate"
    )
    instead: ClassVar[Mapping[str, str]] = {
        "generate": "with the answers as the enum of a property of model.generate.schema",
        "zero_shot": "with the answers as model.prompts",
    }

    @classmethod
    def problems(cls, model: Model) -> Iterator[str]:
        yield from super().problems(model)
        answers = model.choices.values() if isinstance(model.choices, dict) else model.choices
        if not all(answer.strip() for answer in answers):
            yield "choices: an answer is empty"
        if (model.prompt is None) == (not model.messages):
            yield "task 'choices' needs either prompt or messages"
        # Whether the rows are texts, so that a prompt has a place for them, is resolved later.
        yield from prompt_problems(model)
        before, *others = parts_of(model.prompt or PLACE)[::2]
        if model.prompt is not None and not others[1:] and not "".join([before, *others]).strip():
            yield f"prompt: must say something beside {PLACE}"


def prompt_problems(model: Model) -> Iterator[str]:
    """Yield the problems of a job's prompt or messages, with one place for a text at most."""
    texts = [model.prompt or "", *(message.content for message in model.messages)]
    if sum(text.count(PLACE) for text in texts) > 1:
        yield f"prompt, messages: must have {PLACE} once, where the text of a row goes"
