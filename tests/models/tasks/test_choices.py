"""What a job of task `choices` must say, and what it may not."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.job.model import Message, Model
from pipeline.models.tasks import task_class

WHOLE: dict[str, Any] = {
    "path": "m",
    "task": "choices",
    "choices": ("yes", "no"),
    "prompt": "Is it so? {text}",
}
ASKED = (Message(role="user", content="Is it so? {text}"),)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"choices": ()}, "needs choices, at least two answers"),
        ({"choices": ("yes",)}, "needs choices, at least two answers"),
        ({"choices": ("yes", "yes")}, "choices: 'yes' is there more than once"),
        ({"choices": {"good": "yes", "bad": " "}}, "choices: an answer is empty"),
        ({"prompt": None}, "needs either prompt or messages"),
        ({"messages": ASKED}, "needs either prompt or messages"),
        ({"prompt": "{text} {text}"}, r"must have \{text\} once"),
        ({"prompt": " {text}\n"}, r"must say something beside \{text\}"),
        ({"prompt": None, "messages": ASKED * 2}, r"must have \{text\} once"),
        ({"prompts": ("a", "b")}, "prompts has no effect with task 'choices'"),
        ({"task": "classify"}, "choices has no effect with task 'classify', only 'choices'"),
    ],
)
def test_a_wrong_job_is_told_what_would_be_right(changes: dict[str, Any], problem: str):
    with pytest.raises(ValueError, match=problem):
        Model(**{**WHOLE, **changes})


def test_labels_are_the_answers_or_what_stands_for_them():
    kind = task_class("choices")
    assert kind.own_labels(Model(**WHOLE)) == ("yes", "no")
    named = Model(**{**WHOLE, "choices": {"good": "yes", "bad": "no"}})
    assert kind.own_labels(named) == ("good", "bad")
    assert Model(**{**WHOLE, "prompt": None, "messages": ASKED}).messages == ASKED
