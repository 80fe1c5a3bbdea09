"""How texts become tokens for a job: what the model directory says, unless the job says another.

Around the text of a row stands the job's prompt, or its messages by the chat template.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from pipeline.core.errors import JobError
from pipeline.job.transform import Text
from pipeline.models.directories.facts import TextFacts
from pipeline.models.directories.text.chat_template import chat_prompt
from pipeline.models.directories.text.hypotheses import hypotheses
from pipeline.models.resolving.named_model import ResolvedModel
from pipeline.models.resolving.task import prompt_texts, task_name
from pipeline.models.tasks import task_class
from pipeline.models.tasks.choices import PLACE
from pipeline.preprocessing.texts.prompts import PromptTokenizer
from pipeline.preprocessing.texts.text_settings import TENSORS, Prompt, TextSettings
from pipeline.preprocessing.texts.tokenizer import (
    pad_id_of,
    parse_tokenizer,
    read_tokenizer_bytes,
    tokenizer_errors,
)

if TYPE_CHECKING:
    from pipeline.job.model import Model

_PROMPT_TOKENS = 4_096
"""The most tokens of a prompt unless the job says another number: models take up to millions."""


def choose_text(card: ResolvedModel, model: Model, wanted: Text) -> TextSettings:
    """Choose the tokenizer and its limits.

    Args:
        model: The job's section of it, whose prompts and output must fit beside a text.

    Raises:
        JobError: There is no tokenizer or limit, or they cannot be used.
    """
    name, facts = card.name, card.facts.text if card.facts else None
    task = task_class(task_name(model, card))
    prompt = _prompt(model, card, task_name(model, card), wanted)
    frame = facts.prompt if facts and prompt is None else None
    if facts:
        _require_usable(facts, model, wanted)
    of_file = facts if facts and not wanted.tokenizer else None
    new_tokens, storage_options = task.new_tokens(model), model.storage_options
    # A model with labels of its own reads prompts as hypotheses behind the text.
    behind = prompt_texts(model.prompts) if card.facts and card.facts.labels else ()
    uri = wanted.tokenizer
    if not uri and facts and card.directory:
        uri = f"{card.directory.root}/{facts.tokenizer}"
    if not uri:
        if card.transform is not None:
            raise JobError(f"{name} takes images, and the job has texts (source.text_column)")
        raise JobError(
            f"text.tokenizer: {name} brings no tokenizer; give the URI of a tokenizer.json"
        )
    data = read_tokenizer_bytes(uri, storage_options)
    overlay = of_file.overlay if of_file else ""
    tokenizer = parse_tokenizer(f"text.tokenizer = {uri}", data, overlay)
    with tokenizer_errors(f"text.tokenizer = {uri}: fails over texts"):
        pairs = hypotheses(tokenizer, behind)
        reserved = max((len(pair.ids) for pair in pairs), default=0)
        least = tokenizer.num_special_tokens_to_add(is_pair=True) + 2
        if frame is not None:
            least = PromptTokenizer(tokenizer, frame).num_fixed + 1
        if prompt is not None:
            prompts = PromptTokenizer(tokenizer, prompt)
            reserved += max(map(len, prompts.answers(prompt_texts(model.choices))), default=0)
            least = prompts.num_fixed + 1
    if facts and facts.shares_places:
        reserved += new_tokens
        if new_tokens and facts.max_tokens - reserved < least:
            raise JobError(
                f"model.generate.max_new_tokens = {new_tokens}: leaves no room for a text; {name} "
                f"takes {facts.max_tokens} tokens, {least} or more of them before the output"
            )
    most = _max_tokens(name, wanted, facts, reserved, _PROMPT_TOKENS if prompt else None)
    if most < least:
        raise JobError(
            f"text.max_tokens = {most}: leaves no room for a text beside "
            f"{'the prompt' if prompt else 'special tokens'}; give {least} or more"
        )
    return TextSettings(
        tokenizer_uri=uri,
        tokenizer_sha256=hashlib.sha256(data).hexdigest(),
        max_tokens=most,
        prefix=wanted.prefix if wanted.prefix is not None else (facts.prefix if facts else ""),
        pad_id=facts.pad_id if facts else pad_id_of(tokenizer),
        tensor_names=facts.tensor_names if facts else TENSORS,
        types_alone=bool(facts and facts.types_alone),
        has_offsets=task.is_per_token,
        prompt=prompt or frame,
        new_tokens=new_tokens,
        cuts_start=bool(of_file and of_file.cuts_start and prompt is None),
        overlay=overlay,
        storage_options=storage_options,
    )


def _require_usable(facts: TextFacts, model: Model, wanted: Text) -> None:
    """Refuse what token types of all texts, or a chat template around them, have no place for."""
    if facts.types_alone and model.prompts:
        raise JobError(
            f"model.prompts: {model.path} adds token types to all tokens, and prompts have none; "
            "take token_type_ids out of model_input_names of tokenizer_config.json"
        )
    for field, given in (("prefix", wanted.prefix), ("tokenizer", wanted.tokenizer)):
        if given and facts.prompt is not None:
            raise JobError(
                f"text.{field}: has no effect beside the chat template that {model.path} writes "
                "texts by; leave it out"
            )


def _max_tokens(
    name: str, wanted: Text, facts: TextFacts | None, reserved: int, usual: int | None
) -> int:
    free = facts.max_tokens - reserved if facts else None
    most = wanted.max_tokens or (min(free, usual) if free and usual else free)
    if most is None:
        raise JobError(f"text.max_tokens: {name} says no limit; give the most tokens of a row")
    if free is not None and most > free:
        raise JobError(f"text.max_tokens = {most}: {name} takes {free} at most")
    return most


def _prompt(model: Model, card: ResolvedModel, task: str, text: Text) -> Prompt | None:
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
        given, field = [message.content for message in model.messages], "messages"
    if not any(PLACE in prompt for prompt in given):
        raise JobError(f"model.{field}: must have {PLACE} once, where the text of a row goes")
    if text.prefix:
        raise JobError("text.prefix: has no effect beside a prompt; write it into the prompt")
    if model.messages:
        messages = [(message.role, message.content) for message in model.messages]
        return chat_prompt(card.directory, messages)
    before, _, after = (model.prompt or PLACE).partition(PLACE)
    # The answer of a choice begins with the space.
    return Prompt(before, after if writes else after.rstrip(" "))
