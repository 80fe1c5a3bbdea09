"""What stands around the text of a row: the job's prompt, or its messages by the chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.core.errors import JobError
from pipeline.models.directories.snapshot import local
from pipeline.models.directories.text.chat_template import chat_prompt
from pipeline.models.resolving.cards import FoundModel
from pipeline.models.resolving.task_choice import task_name
from pipeline.models.tasks import task_class
from pipeline.models.tasks.choices import PLACE
from pipeline.preprocessing.texts.text_settings import Prompt

if TYPE_CHECKING:
    from pipeline.job.model import Model
    from pipeline.job.text import Text


def choose_prompt(model: Model, card: FoundModel, text: Text) -> Prompt | None:
    """Return the prompt of a job; None if its task needs none.

    Raises:
        JobError: The model is no directory, or its chat template fails.
    """
    writes = bool(task_class(task_name(model, card)).new_tokens(model))
    if model.prompt is None and not model.messages and not writes:
        return None
    if card.directory is None:
        task = task_name(model, card)
        raise JobError(f"model.task = {task!r}: needs model.path, and the model is {card.name}")
    if text.prefix:
        raise JobError("text.prefix: has no effect beside a prompt; write it into the prompt")
    if model.messages:
        messages = [(each.role, each.content) for each in model.messages]
        return chat_prompt(local(card.directory), messages)
    before, _, after = (model.prompt or PLACE).partition(PLACE)
    # The answer of a choice begins with the space.
    return Prompt(before, after if writes else after.rstrip(" "))
