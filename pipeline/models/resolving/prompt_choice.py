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
from pipeline.models.directories.text.chat_template import chat_prompt, image_prompt
from pipeline.models.directories.text.text_facts import load_tokenizer
from pipeline.models.generation import Rules
from pipeline.models.resolving.cards import FoundModel
from pipeline.models.tasks import task_class
from pipeline.models.tasks.choices import PLACE
from pipeline.preprocessing.texts.text_settings import Prompt
from pipeline.preprocessing.texts.tokenizer import tokenizer_errors

if TYPE_CHECKING:
    from pipeline.job.model import Model
    from pipeline.job.transform import Text


def choose_start(model: Model, facts: GenerationFacts, folder: Path) -> Rules:
    """Return the rules of a model that reads no text, begun with the job's prompt if it has one.

    Args:
        model: The job's section.
        facts: Of the model directory.
        folder: The directory.

    Raises:
        JobError: It has messages and there is no place for an image, or a place for a text.
    """
    if model.prompt is None and not model.messages and not facts.image_mark:
        return facts.rules
    tokenizer = load_tokenizer(folder / facts.tokenizer)
    prompt = _plain_prompt(model, facts, folder)
    if facts.image_mark:
        prompt = prompt.replace(facts.image_mark, facts.image_text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    with tokenizer_errors("model.prompt: the tokenizer fails over it"):
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    if not ids:
        raise JobError("model.prompt: has no tokens; leave it out")
    first = facts.rules.start[:1]
    is_whole = facts.is_begun_by_prompt or ids[:1] == [*first]
    return replace(facts.rules, start=(*(() if is_whole else first), *ids), languages=())


def _plain_prompt(model: Model, facts: GenerationFacts, folder: Path) -> str:
    """Return the text that a model which reads none begins with; an image is one token there."""
    texts = [model.prompt or "", *(each.content for each in model.messages)]
    if any(PLACE in text for text in texts):
        field = "messages" if model.messages else "prompt"
        raise JobError(f"model.{field}: the model reads no text, so that {PLACE} has no effect")
    if not facts.image_mark:
        if model.messages:
            raise JobError("model.messages: the model reads no text; give model.prompt instead")
        return texts[0]
    if model.messages:
        messages = [(each.role, each.content) for each in model.messages]
        return image_prompt(folder, messages, facts.image_mark)
    if texts[0].count(facts.image_mark) != 1:
        raise JobError(f"model.prompt: must have {facts.image_mark} once, where the image goes")
    return texts[0]


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
    given, field = [PLACE if model.prompt is None else model.prompt], "prompt"
    if model.messages:
        given, field = [each.content for each in model.messages], "messages"
    if not any(PLACE in each for each in given):
        raise JobError(f"model.{field}: must have {PLACE} once, where the text of a row goes")
    if text.prefix:
        raise JobError("text.prefix: has no effect beside a prompt; write it into the prompt")
    if model.messages:
        messages = [(each.role, each.content) for each in model.messages]
        return chat_prompt(local(card.directory), messages)
    before, _, after = (model.prompt or PLACE).partition(PLACE)
    # The answer of a choice begins with the space.
    return Prompt(before, after if writes else after.rstrip(" "))
