"""Turn a model's outputs into columns, and the registry of all tasks.

Begin with `base.py`, the protocol. A new task is a file with a class like `classify.Classify`, a
line here, and a case in tests/models/tasks/test_task_conformance.py; or a class in another
distribution with an entry point of group `pipeline.tasks`. Other code reads properties of the task,
never its name.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.core.registry import TASKS, get
from pipeline.models.tasks.base import Task, TaskSpec

REGISTRY = {
    "classify": "pipeline.models.tasks.classify:Classify",
    "multilabel": "pipeline.models.tasks.multilabel:Multilabel",
    "embed": "pipeline.models.tasks.embed:Embed",
    "sparse": "pipeline.models.tasks.sparse:Sparse",
    "multi_vector": "pipeline.models.tasks.multi_vector:MultiVector",
    "regress": "pipeline.models.tasks.regress:Regress",
    "score": "pipeline.models.tasks.regress:Score",
    "detect": "pipeline.models.tasks.detect:Detect",
    "tokens": "pipeline.models.tasks.tokens:Tokens",
    "zero_shot": "pipeline.models.tasks.classify:ZeroShot",
    "choices": "pipeline.models.tasks.classify:Choices",
    "generate": "pipeline.models.generate.task:Generate",
    "transcribe": "pipeline.models.generate.transcribe:Transcribe",
    "raw": "pipeline.models.tasks.raw:Raw",
}


def task_class(name: str) -> type[Task]:
    """Return the class of a task.

    Raises:
        JobError: The name is unknown here, or the distribution of the task is broken.
    """
    task: type[Task] = get(TASKS, name)
    return task


def served_as(name: str, served: Sequence[str]) -> str | None:
    """Return the task whose outputs a model gives for a task: itself, or the first it reduces.

    Args:
        served: The tasks that the model serves by itself.

    Returns:
        One of `served`; None: the model does not serve the task.
    """
    return next((task for task in (name, *task_class(name).reduces) if task in served), None)


def make_task(spec: TaskSpec) -> Task:
    """Return the task of a spec; raises as `task_class` does."""
    return task_class(spec.kind)(spec)  # type: ignore[call-arg]  # tasks are made from a spec
