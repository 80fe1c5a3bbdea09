"""Prompts with an image among their tokens, made by the library's processor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import JobError
from pipeline.models.directories import probes
from pipeline.models.directories.files import preview
from pipeline.models.directories.snapshot import ModelDirectory
from pipeline.models.directories.text.chat_template import WAY_OUT, Messages, ask, loaded, rendered

_IDS = "pipeline.models.directories.text.image_prompts:image_ids"


def image_prompt(
    directory: ModelDirectory, prompt: str, messages: Messages, mark: str
) -> tuple[int, ...]:
    """Return the tokens of a prompt, or of messages, about an image.

    Args:
        directory: The model directory.
        prompt: The job's prompt; unused if there are messages.
        messages: The job's messages, formatted by the directory's chat template.
        mark: Text that stands for the image, in the job and in the output of a template.

    Raises:
        JobError: The image is missing, or occurs several times; or as `ask`.
    """
    contents = [content for _, content in messages] or [prompt]
    if sum(content.count(mark) for content in contents) != 1:
        field = "messages" if messages else "prompt"
        raise JobError(f"model.{field}: must have {mark} once, where the image goes")
    return tuple(ask(_IDS, directory, prompt, messages, mark))


def image_ids(path: str, prompt: str, messages: Messages, mark: str) -> list[int]:
    """Return the tokens; see `image_prompt`."""
    from pipeline.models.directories.text.media_prompts import with_image

    with loaded(Path(path), "AutoProcessor") as processor:
        if messages:
            prompt = _written(processor, messages, mark)
        ids: list[int] = with_image(processor, prompt, probes.images()[0])["input_ids"][0].tolist()
    return ids


def _written(processor: Any, messages: Messages, mark: str) -> str:
    parts = [_parts(content, mark) for _, content in messages]
    prompt = rendered(processor, [(role, p) for (role, _), p in zip(messages, parts, strict=True)])
    texts = [part["text"] for content in parts for part in content if "text" in part]
    missing = [text for text in texts if text.strip() not in prompt]
    if missing or prompt.count(mark) != 1:
        what = f"no {preview(missing[0])}" if missing else f"{mark} {prompt.count(mark)} times"
        raise JobError(
            f"model.messages: the chat template of model.path writes {what}, expected each part "
            f"once; {WAY_OUT}"
        )
    return prompt


def _parts(content: str, mark: str) -> Sequence[dict[str, str]]:
    """Return a content as the parts of transformers, without empty texts."""
    before, image, behind = content.partition(mark)
    parts = [{"type": "text", "text": before}] if before else []
    parts += [{"type": "image"}] if image else []
    return parts + ([{"type": "text", "text": behind}] if behind else [])
