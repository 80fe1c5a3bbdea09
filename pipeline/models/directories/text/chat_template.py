"""What the chat template of a model directory puts around the text of a row, by its own library.

The library renders the messages in a confined child process, with several texts in the row's place:
what stands around all of them alike is the prompt. Messages about an image are lists of parts, of
which one stands for the image; they have no text of a row.
"""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pipeline.core.cache.node_cache import cached_folder, key_of
from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.models.directories.json_files import preview
from pipeline.models.directories.opening import KEPT_WITH
from pipeline.models.directories.snapshot import ModelDirectory, local
from pipeline.models.directories.view import make_view
from pipeline.models.tasks.choices import PLACE
from pipeline.preprocessing.texts.text_settings import Prompt
from pipeline.process.confined import ConfinedError, confined

Messages = Sequence[tuple[str, str]]
"""Role and content of each."""
_VERSION = 1
"""Of what is kept; raise it if the same directory and messages give another prompt."""
_MODULE = "pipeline.models.directories.text.chat_template"
_IMPORTS = ("torch", "transformers", "transformers.models.auto.processing_auto")
_FILE = "prompt.json"
_CPU_S, _MEMORY_BYTES = 20, 2 << 30
"""Loading a tokenizer takes most of it; a template may be endless."""
_MOST_CHARS = 1 << 20
_TEXT = "Place of the text"
_STRIPS: tuple[Literal["", "both", "left", "right"], ...] = ("", "both", "left", "right")
_LITERAL = re.compile(r"'([^'{}%]+)'|\"([^\"{}%]+)\"")
"""Texts that a template writes, or looks for."""
_ADDRESS = re.compile(r"\bat 0x[0-9a-f]+>", re.IGNORECASE)
_NO_CLOCK = "{% set strftime_now = the_time %}\n"
"""Leaves that name undefined: the same job gives the same prompts, and templates that ask whether
it is defined have a date of their own."""
_WAY_OUT = "write model.prompt instead"


def chat_prompt(directory: ModelDirectory, messages: Messages) -> Prompt:
    """Render messages with the chat template of a directory.

    Args:
        directory: The directory.
        messages: One content has PLACE, once.

    Raises:
        JobError: There is no template, it fails, takes too long or too much memory, or it does not
            write a text as it is, once.
    """
    return Prompt(**_known("text_frame", directory, messages))


def image_prompt(directory: ModelDirectory, messages: Messages, image: str) -> str:
    """Render messages about an image with the chat template of a directory.

    Args:
        directory: The directory.
        messages: One content has `image`, once.
        image: What stands for the image in a content, and in what the template writes.

    Raises:
        JobError: As `chat_prompt`; or no content, or several, have the image.
    """
    if sum(content.count(image) for _, content in messages) != 1:
        raise JobError(f"model.messages: must have {image} once, where the image goes")
    return str(_known("image_frame", directory, messages, image))


def _known(function: str, directory: ModelDirectory, messages: Messages, *more: str) -> Any:
    """Return what a function of this module makes in a confined process, or what is kept of it."""

    def write(folder: Path) -> None:
        path = local(directory)
        try:
            answer = confined(
                f"{_MODULE}:{function}",
                str(path),
                messages,
                *more,
                reads=[path],
                imports=_IMPORTS,
                cpu_s=_CPU_S,
                memory_bytes=_MEMORY_BYTES,
            )
        except ConfinedError as error:
            raise _failed(str(error)) from None
        (folder / _FILE).write_text(json.dumps(answer))

    key = key_of([function, _VERSION, directory.sha256, messages, more], KEPT_WITH)
    return json.loads((cached_folder(key, write) / _FILE).read_text())


def text_frame(path: str, messages: Messages) -> dict[str, Any]:
    """Return the fields of the prompt; see `chat_prompt`."""
    with _template(Path(path), "AutoTokenizer") as (template, render):

        def with_text(text: str) -> str:
            return render(
                [
                    {"role": role, "content": content.replace(PLACE, text)}
                    for role, content in messages
                ]
            )

        before, *after = with_text(_TEXT).split(_TEXT)
        if len(after) != 1:
            raise JobError(
                f"model.messages: the chat template of model.path writes the text {len(after)} "
                f"times, expected once; {_WAY_OUT}"
            )
        written = {text: with_text(text) for text in _texts(template)}
    prompts = [Prompt(before, after[0], False, strips) for strips in _STRIPS]
    for prompt in prompts:
        if all(prompt.around(text) == out for text, out in written.items()):
            return asdict(prompt)
    text, out = next(pair for pair in written.items() if prompts[0].around(pair[0]) != pair[1])
    raise JobError(
        f"model.messages: the chat template of model.path does not write each text as it is: of "
        f"{preview(text)} it makes {preview(out)}; {_WAY_OUT}"
    )


def image_frame(path: str, messages: Messages, image: str) -> str:
    """Return the prompt; see `image_prompt`."""
    parts = [_parts(content, image) for _, content in messages]
    with _template(Path(path), "AutoProcessor") as (_, render):
        rendered = render(
            [
                {"role": role, "content": content}
                for (role, _), content in zip(messages, parts, strict=True)
            ]
        )
    texts = [part["text"] for content in parts for part in content if "text" in part]
    missing = [text for text in texts if text.strip() not in rendered]
    if missing or rendered.count(image) != 1:
        what = f"no {preview(missing[0])}" if missing else f"{image} {rendered.count(image)} times"
        raise JobError(
            f"model.messages: the chat template of model.path writes {what}, expected each part "
            f"once; {_WAY_OUT}"
        )
    return rendered


def _texts(template: str) -> Iterator[str]:
    """Yield texts that templates may write otherwise, those that it looks for among them."""
    literals = "".join(text for pair in _LITERAL.findall(template) for text in pair)
    yield from (f" \n {_TEXT}\t\n\n", f"{_TEXT} 1234567 3.14 " * 400, f"-{literals}-", "")
    yield '<b>\u00c4 "don\'t" & \\n {{ 1 }} {% if %}</b>\r\n\n\n  #_* \U0001f600'


def _parts(content: str, image: str) -> list[dict[str, str]]:
    """Return the parts of a content as transformers has them, without empty texts."""
    before, mark, behind = content.partition(image)
    parts = [{"type": "text", "text": before}] if before else []
    parts += [{"type": "image"}] if mark else []
    return parts + ([{"type": "text", "text": behind}] if behind else [])


@contextmanager
def _template(folder: Path, auto: str) -> Iterator[tuple[str, Callable[[Any], str]]]:
    """Load the template by one of the library's classes; have it and what renders messages by it.

    Rendering has bounds, and what it draws by chance is the same each time.
    """
    import transformers

    with tempfile.TemporaryDirectory() as place:
        view = make_view(folder, Path(place))
        try:
            renderer = getattr(transformers, auto).from_pretrained(
                view, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # the library fails over files in many ways
            raise _failed(f"{type(error).__name__}: {error}") from error
    template = renderer.chat_template
    if isinstance(template, Mapping):
        template = template.get("default")
    if not isinstance(template, str):
        raise JobError(f"model.messages: model.path has no chat template; {_WAY_OUT}")

    def render(messages: Any) -> str:
        random.seed(0)
        text: str = renderer.apply_chat_template(
            messages,
            chat_template=_NO_CLOCK + template,
            add_generation_prompt=True,
            tokenize=False,
        )
        if len(text) > _MOST_CHARS or _ADDRESS.search(text):
            what = "an address of memory" if len(text) <= _MOST_CHARS else "too much"
            raise JobError(
                f"model.messages: the chat template of model.path writes {what}; {_WAY_OUT}"
            )
        return text

    try:
        yield template, render
    except JobError:
        raise
    except Exception as error:  # the template is foreign code
        raise _failed(f"{type(error).__name__}: {error}") from error


def _failed(reason: str) -> JobError:
    return JobError(
        f"model.messages: the chat template of model.path fails: {clean_message(reason, 200)}; "
        f"{_WAY_OUT}"
    )
