"""What the chat template of a model directory puts around the text of a row.

The template is rendered once, in a process of its own (`chat_program.py`), with a mark where texts
go. So it sees no text, and no text is a part of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.models.directories.json_files import check_size, read_object
from pipeline.models.directories.text.text_facts import CONFIG, SPECIAL, output_of
from pipeline.models.tasks.choices import PLACE
from pipeline.preprocessing.texts.text_settings import Prompt

FILE = "chat_template.jinja"
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
    said = [{"role": role, "content": content.replace(PLACE, _MARK)} for role, content in messages]
    given = {"template": _template(folder), "messages": said, "tokens": _special(folder)}
    before, *after = _rendered(given).split(_MARK)
    if len(after) != 1:
        raise JobError(
            f"model.messages: the chat template of model.path writes the text {len(after)} times, "
            "expected once; write model.prompt instead"
        )
    return Prompt(before, after[0], adds_special=False)


def _template(folder: Path) -> str:
    file = folder / FILE
    if file.is_file():
        check_size(FILE, file.stat().st_size, FILE)
        return file.read_text("utf-8", errors="replace")
    found: Any = read_object(folder, CONFIG, optional=True).get("chat_template")
    if isinstance(found, list):
        named = [each for each in found if isinstance(each, dict) and each.get("name") == "default"]
        found = named[0].get("template") if named else None
    if not isinstance(found, str):
        raise JobError(
            f"model.messages: model.path has no chat template ({FILE}, or chat_template in "
            f"{CONFIG}); write model.prompt instead"
        )
    return found


def _special(folder: Path) -> dict[str, str]:
    """Return name -> text of the special tokens that templates write."""
    known = read_object(folder, SPECIAL, optional=True) | read_object(folder, CONFIG, optional=True)
    found = {}
    for name in _TOKENS:
        token = known.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            found[name] = token
    return found


def _rendered(given: dict[str, Any]) -> str:
    try:
        return str(json.loads(output_of(["-m", _PROGRAM], json.dumps(given).encode())))
    except ChildProcessError as error:
        told = str(error)
    raise JobError(
        f"model.messages: the chat template of model.path fails: {clean_message(told, 200)}; "
        "write model.prompt instead"
    )
