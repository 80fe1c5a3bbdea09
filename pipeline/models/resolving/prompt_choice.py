"""What stands around the text of a row: the job's prompt, or its messages by the chat template.

A model that reads no text begins with the prompt.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import JobError
from pipeline.models.directories.facts import GenerationFacts
from pipeline.models.directories.snapshot import local
from pipeline.models.directories.text.chat_template import chat_prompt
from pipeline.models.directories.text.text_facts import load_tokenizer
from pipeline.models.generation import Rules
from pipeline.models.resolving.cards import FoundModel
from pipeline.models.tasks import task_class
from pipeline.models.tasks.choices import PLACE
from pipeline.preprocessing.texts.text_settings import Prompt
from pipeline.preprocessing.texts.tokenizer import tokenizer_errors

if TYPE_CHECKING:
    from pipeline.job.model import Model
    from pipeline.job.text import Text


def choose_start(model: Model, facts: GenerationFacts, folder: Path) -> Rules:
    """Return the rules of a model that reads no text, begun with the job's prompt if it has one.

    Args:
        model: The job's section.
        facts: Of the model directory.
        folder: The directory.

    Raises:
        JobError: It has messages, or a place for a text.
    """
    if model.messages:
        raise JobError("model.messages: the model reads no text; give model.prompt instead")
    if model.prompt is None and facts.image_token is None:
        return facts.rules
    prompt = model.prompt or ""
    if PLACE in prompt:
        raise JobError(f"model.prompt: the model reads no text, so that {PLACE} has no effect")
    tokenizer = load_tokenizer(folder / facts.tokenizer)
    with tokenizer_errors("model.prompt: the tokenizer fails over it"):
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    if facts.image_token is not None:
        if ids.count(facts.image_token) != 1:
            name = tokenizer.id_to_token(facts.image_token)
            raise JobError(f"model.prompt: must have {name} once, where the image goes")
        place = ids.index(facts.image_token)
        ids[place : place + 1] = [facts.image_token] * facts.num_image_tokens
    if not ids:
        raise JobError("model.prompt: has no tokens; leave it out")
    first = facts.rules.start[:1]
    is_whole = facts.is_begun_by_prompt or ids[:1] == [*first]
    return replace(facts.rules, start=(*(() if is_whole else first), *ids), languages=())


def choose_prompt(model: Model, card: FoundModel, task: str, text: Text) -> Prompt | None:
    """Return the prompt of a job's task; None if it needs none.

    Raises:
        JobError: The model is no directory, or its chat template fails.
    """
    writes = bool(task_class(task).new_tokens(model))
    if model.prompt is None and not model.messages and not writes:
        return None
    if card.directory is None:
        raise JobError(f"model.task = {task!r}: needs model.path, and the model is {card.name}")
    if not model.messages and model.prompt is not None and PLACE not in model.prompt:
        raise JobError(f"model.prompt: must have {PLACE} once, where the text of a row goes")
    if text.prefix:
        raise JobError("text.prefix: has no effect beside a prompt; write it into the prompt")
    if model.messages:
        messages = [(each.role, each.content) for each in model.messages]
        return chat_prompt(local(card.directory), messages)
    before, _, after = (model.prompt or PLACE).partition(PLACE)
    # The answer of a choice begins with the space.
    return Prompt(before, after if writes else after.rstrip(" "))
