"""What the chat template of a model directory puts around the text of a row.

The template is rendered once, in a process of its own (`chat_program.py`), with a mark where texts
go. So it sees no text, and no text is a part of it. Messages about an image are lists of parts, of
which one stands for the image.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.models.directories.json_files import BOTH, check_size, preview, read_object
from pipeline.models.directories.text.text_facts import CONFIG, SPECIAL, output_of
from pipeline.models.tasks.choices import PLACE
from pipeline.preprocessing.texts.text_settings import Prompt

FILE = "chat_template.jinja"
LEGACY = "chat_template.json"
"""Where processors of images and texts once had it."""
_OF_TEXTS = (FILE, CONFIG)
_OF_IMAGES = (BOTH, LEGACY, FILE, CONFIG)
"""Files that have it, in the order of the library's tokenizer, and of its processor."""
_MARK = "PlaceOfTheText"
_PROGRAM = "pipeline.models.directories.text.chat_program"
_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


def chat_prompt(folder: Path, messages: Sequence[tuple[str, str]]) -> Prompt:
    """Render messages with the chat template of a directory.

    Args:
        folder: The directory.
        messages: Role and content of each; one content has PLACE, once.

    Raises:
        JobError: There is no template, it fails, takes too long or too much memory, or it does not
            write each message once.
    """
    marked = [
        {"role": role, "content": content.replace(PLACE, _MARK)} for role, content in messages
    ]
    before, *after = _rendered(folder, _OF_TEXTS, marked).split(_MARK)
    if len(after) != 1:
        raise JobError(
            f"model.messages: the chat template of model.path writes the text {len(after)} times, "
            "expected once; write model.prompt instead"
        )
    return Prompt(before, after[0], adds_special=False)


def image_prompt(folder: Path, messages: Sequence[tuple[str, str]], image: str) -> str:
    """Render messages about an image with the chat template of a directory.

    Args:
        folder: The directory.
        messages: Role and content of each.
        image: What stands for the image in a content, once, and in what the template writes.

    Raises:
        JobError: As `chat_prompt`; or no content, or several, have the image.
    """
    if sum(content.count(image) for _, content in messages) != 1:
        raise JobError(f"model.messages: must have {image} once, where the image goes")
    parts = [_parts(content, image) for _, content in messages]
    structured = [
        {"role": role, "content": content}
        for (role, _), content in zip(messages, parts, strict=True)
    ]
    rendered = _rendered(folder, _OF_IMAGES, structured)
    texts = [part["text"] for content in parts for part in content if "text" in part]
    missing = [text for text in texts if text.strip() not in rendered]
    if missing or rendered.count(image) != 1:
        what = f"no {preview(missing[0])}" if missing else f"{image} {rendered.count(image)} times"
        raise JobError(
            f"model.messages: the chat template of model.path writes {what}, expected each part "
            "once; write model.prompt instead"
        )
    return rendered


def _parts(content: str, image: str) -> list[dict[str, str]]:
    """Return the parts of a content as transformers has them, without empty texts."""
    before, mark, behind = content.partition(image)
    parts = [{"type": "text", "text": before}] if before else []
    parts += [{"type": "image"}] if mark else []
    return parts + ([{"type": "text", "text": behind}] if behind else [])


def _template(folder: Path, names: Sequence[str]) -> str:
    for name in names:
        if name == FILE:
            file = folder / name
            if file.is_file():
                check_size(name, file.stat().st_size, name)
                return file.read_text("utf-8", errors="replace")
            continue
        template: Any = read_object(folder, name, optional=True).get("chat_template")
        if isinstance(template, list):  # of names and templates
            entries = [entry for entry in template if isinstance(entry, dict)]
            defaults = (entry for entry in entries if entry.get("name") == "default")
            template = next(defaults, {}).get("template")
        elif isinstance(template, dict):
            template = template.get("default")
        if isinstance(template, str):
            return template
    places = ", ".join(name if name == FILE else f"chat_template in {name}" for name in names)
    raise JobError(
        f"model.messages: model.path has no chat template ({places}); write model.prompt instead"
    )


def _special(folder: Path) -> dict[str, str]:
    """Return name -> text of the special tokens that templates write."""
    known = read_object(folder, SPECIAL, optional=True) | read_object(folder, CONFIG, optional=True)
    tokens = {}
    for name in _TOKENS:
        token = known.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            tokens[name] = token
    return tokens


def _rendered(folder: Path, names: Sequence[str], messages: Sequence[Any]) -> str:
    """Return what the template of the first file that has one writes."""
    template, tokens = _template(folder, names), _special(folder)
    given = {"template": template, "messages": messages, "tokens": tokens}
    try:
        return str(json.loads(output_of(["-m", _PROGRAM], json.dumps(given).encode())))
    except ChildProcessError as error:
        reason = str(error)
    raise JobError(
        f"model.messages: the chat template of model.path fails: {clean_message(reason, 200)}; "
        "write model.prompt instead"
    )
