"""Task `zero_shot`: as `classify`, with labels that the job describes by prompts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pipeline.models.tasks.classify import Classify

if TYPE_CHECKING:
    from pipeline.job.model import Model


@dataclass(frozen=True)
class ZeroShot(Classify):
    """The best prompts with their probabilities."""

    job_fields: ClassVar[tuple[str, ...]] = ("prompts", "top_k", "scores")
    needs_labels: ClassVar[bool] = False
    labels_field: ClassVar[str] = "model.prompts"

    @classmethod
    def problems(cls, model: Model) -> Iterator[str]:
        labels = cls.own_labels(model)
        if len(labels) < 2:
            yield "task 'zero_shot' needs prompts, at least two texts or a mapping of label to text"
        repeated = [label for label in dict.fromkeys(labels) if labels.count(label) > 1]
        if repeated:
            yield f"prompts: {repeated[0]!r} is there more than once"

    @classmethod
    def own_labels(cls, model: Model) -> tuple[str, ...]:
        return tuple(model.prompts)

    def num_outputs(self) -> int | None:
        return None
