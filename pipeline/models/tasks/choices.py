"""Tasks `zero_shot` and `choices`: as `classify`, with labels that are texts of the job.

A text encoder, or a model of entailment, compares rows with prompts; a language model says how
likely it finds each answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pipeline.models.tasks.classify import Classify

if TYPE_CHECKING:
    from pipeline.job.model import Model

PLACE = "{text}"
"""Where a prompt has the text of a row."""


@dataclass(frozen=True)
class ZeroShot(Classify):
    """The best prompts with their probabilities."""

    job_fields: ClassVar[tuple[str, ...]] = ("prompts", "top_k", "scores")
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
        if model.prompt is not None and not model.prompt.replace(PLACE, "").strip():
            yield f"prompt: must say something beside {PLACE}"


def prompt_problems(model: Model) -> Iterator[str]:
    """Yield the problems of a job's prompt or messages, with one place for a text at most."""
    texts = [model.prompt or "", *(message.content for message in model.messages)]
    if sum(text.count(PLACE) for text in texts) > 1:
        yield f"prompt, messages: must have {PLACE} once, where the text of a row goes"
