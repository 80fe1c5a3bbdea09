"""Task `choices`: as `classify`, with answers of the job that a language model finds likely."""

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
class Choices(Classify):
    """The most likely answers; scores are the softmax of mean log-likelihoods."""

    runtimes: ClassVar[tuple[str, ...] | None] = ("eager",)
    job_fields: ClassVar[tuple[str, ...]] = (
        *("choices", "prompt", "messages", "prior_corrected", "top_k"),
    )
    needs_labels: ClassVar[bool] = False
    labels_field: ClassVar[str] = "model.choices"
    instead: ClassVar[Mapping[str, str]] = {
        "generate": "with the answers as the enum of a property of model.generate.schema",
        "zero_shot": "with the answers as model.prompts",
    }

    @classmethod
    def problems(cls, model: Model) -> Iterator[str]:
        labels = cls.own_labels(model)
        if len(labels) < 2:
            yield "task 'choices' needs choices, at least two answers"
        repeated = [label for label in dict.fromkeys(labels) if labels.count(label) > 1]
        if repeated:
            yield f"choices: {repeated[0]!r} is there more than once"
        answers = model.choices.values() if isinstance(model.choices, dict) else model.choices
        if not all(answer.strip() for answer in answers):
            yield "choices: an answer is empty"
        if (model.prompt is None) == (not model.messages):
            yield "task 'choices' needs either prompt or messages"
        # Whether the rows are texts, so that a prompt has a place for them, is resolved later.
        yield from prompt_problems(model)
        if model.prompt is not None and not model.prompt.replace(PLACE, "").strip():
            yield f"prompt: must say something beside {PLACE}"

    @classmethod
    def own_labels(cls, model: Model) -> tuple[str, ...]:
        return tuple(model.choices)

    def num_outputs(self) -> int | None:
        return None


def prompt_problems(model: Model) -> Iterator[str]:
    """Yield the problems of a job's prompt or messages, with one place for a text at most."""
    texts = [model.prompt or "", *(message.content for message in model.messages)]
    if sum(text.count(PLACE) for text in texts) > 1:
        yield f"prompt, messages: must have {PLACE} once, where the text of a row goes"
