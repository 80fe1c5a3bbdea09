"""What stands around the text of a row: the job's prompt, or its messages by the chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.core.errors import JobError
from pipeline.models.directories.snapshot import local
from pipeline.models.directories.text.chat_template import chat_prompt
from pipeline.models.resolving.cards import FoundModel
from pipeline.models.tasks.choices import PLACE
from pipeline.preprocessing.texts.text_settings import Prompt

if TYPE_CHECKING:
    from pipeline.job.model import Model
    from pipeline.job.text import Text


def choose_prompt(model: Model, card: FoundModel, text: Text) -> Prompt | None:
    """Return the prompt of a job; None if its task has none.

    Raises:
        JobError: The model is no directory, or its chat template fails.
    """
    if model.prompt is None and not model.messages:
        return None
    if card.directory is None:
        raise JobError(f"model.task = 'choices': needs model.path, and the model is {card.name}")
    if text.prefix:
        raise JobError("text.prefix: has no effect beside a prompt; write it into the prompt")
    if model.prompt is None:
        messages = [(each.role, each.content) for each in model.messages]
        return chat_prompt(local(card.directory), messages)
    before, _, after = model.prompt.partition(PLACE)
    return Prompt(before, after.rstrip(" "))  # an answer begins with the space
