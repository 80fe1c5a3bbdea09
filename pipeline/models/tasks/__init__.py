"""What to make of a model's outputs: one task per file, and the registry of all of them.

A new task is a file with a class like `classify.Classify`, a line here, and a case in
tests/models/test_task_conformance.py; or a class in another distribution with an entry point of
group `pipeline.tasks`. What comes after reads properties of the task, never its name.
"""

from __future__ import annotations

from pipeline.core.registry import TASKS, get
from pipeline.models.tasks.base import Task, TaskSpec

REGISTRY = {
    "classify": "pipeline.models.tasks.classify:Classify",
    "embed": "pipeline.models.tasks.embed:Embed",
    "regress": "pipeline.models.tasks.regress:Regress",
    "raw": "pipeline.models.tasks.raw:Raw",
}


def task_class(name: str) -> type[Task]:
    """Return the class of a task.

    Raises:
        JobError: There is none of that name here, or the distribution that brings it is broken.
    """
    found: type[Task] = get(TASKS, name)
    return found


def make_task(spec: TaskSpec) -> Task:
    """Return the task of a spec; raises as `task_class` does."""
    return task_class(spec.kind)(spec)  # type: ignore[call-arg]  # tasks are made from a spec
