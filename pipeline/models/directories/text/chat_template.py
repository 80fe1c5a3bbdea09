"""Find the prompt that the chat template of a model directory puts around the text of a row.

The library renders the messages in a confined child process, with several texts in the place of a
row's: the prompt is the part that is the same around all of them.
"""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pipeline.core.errors import JobError
from pipeline.core.node_cache import cached_folder, key_of
from pipeline.core.printable import clean_message
from pipeline.job.prompt_places import parts_of
from pipeline.models.directories.files import make_view, preview
from pipeline.models.directories.library import quiet
from pipeline.models.directories.opening import KEPT_WITH
from pipeline.models.directories.snapshot import ModelDirectory, local
from pipeline.preprocessing.texts.text_settings import Prompt
from pipeline.process.confined import ConfinedError, confined

Messages = Sequence[tuple[str, str]]
"""Role and content of each."""
WAY_OUT = "write model.prompt instead"
_VERSION = 2
"""Version of the prompts that are kept; raise it if the same messages give another one."""
_IMPORTS = ("torch", "transformers", "transformers.models.auto.processing_auto")
_FRAME = "pipeline.models.directories.text.chat_template:text_frame"
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


def chat_prompt(directory: ModelDirectory, messages: Messages) -> Prompt:
    """Render messages with the chat template of a directory.

    Args:
        messages: Some contents have places.

    Raises:
        JobError: There is no template, it fails, takes too long or too much memory, or it does not
            write a text as it is, once.
    """
    made = ask(_FRAME, directory, messages)
    return Prompt(**{**made, "middles": (*made["middles"],), "columns": (*made["columns"],)})


def ask(function: str, directory: ModelDirectory, *arguments: Any) -> Any:
    """Call a function over a directory's files in a confined process; keep and return its result.

    Args:
        function: `module:name`; it takes the files' folder and the arguments, and returns JSON.

    Raises:
        JobError: It fails, or takes too much.
    """

    def write(folder: Path) -> None:
        path = local(directory)
        try:
            answer = confined(
                function,
                str(path),
                *arguments,
                reads=[path],
                imports=_IMPORTS,
                cpu_s=_CPU_S,
                memory_bytes=_MEMORY_BYTES,
            )
        except ConfinedError as error:
            raise _failed(str(error)) from None
        (folder / _FILE).write_text(json.dumps(answer))

    key = key_of([function, _VERSION, directory.sha256, arguments], KEPT_WITH)
    return json.loads((cached_folder(key, write) / _FILE).read_text())


def text_frame(path: str, messages: Messages) -> dict[str, Any]:
    """Return the fields of the prompt; see `chat_prompt`."""
    split = [(role, parts_of(content)) for role, content in messages]
    columns = tuple(name for _, parts in split for name in parts[1::2])
    with loaded(Path(path), "AutoTokenizer") as tokenizer:

        def with_texts(texts: Sequence[str]) -> str:
            left = iter(texts)
            return rendered(
                tokenizer,
                [
                    (role, "".join(next(left) if n % 2 else part for n, part in enumerate(parts)))
                    for role, parts in split
                ],
            )

        constants = with_texts([_TEXT] * len(columns)).split(_TEXT)
        if len(constants) != 1 + len(columns):
            raise JobError(
                f"model.messages: the chat template of model.path writes the text "
                f"{len(constants) - 1} times, expected {_times(len(columns))}; {WAY_OUT}"
            )
        written = {row: with_texts(row) for row in _rows(template_of(tokenizer), len(columns))}
    before, *middles, after = constants
    prompts = [
        Prompt(before, after, False, strips, False, (*middles,), columns) for strips in _STRIPS
    ]
    for prompt in prompts:
        if all(prompt.around(*row) == out for row, out in written.items()):
            return asdict(prompt)
    row, out = next(pair for pair in written.items() if prompts[0].around(*pair[0]) != pair[1])
    raise JobError(
        f"model.messages: the chat template of model.path does not write each text as it is: of "
        f"{preview(' | '.join(row))} it makes {preview(out)}; {WAY_OUT}"
    )


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _rows(template: str, num_places: int) -> Iterator[tuple[str, ...]]:
    """Yield rows of texts that templates may write otherwise: in all places, and in one each."""
    for text in _texts(template):
        yield (text,) * num_places
        for place in range(num_places if num_places > 1 else 0):
            yield (*[_TEXT] * place, text, *[_TEXT] * (num_places - place - 1))


def _texts(template: str) -> Iterator[str]:
    """Yield texts that templates may write otherwise, those that it looks for among them."""
    literals = "".join(text for pair in _LITERAL.findall(template) for text in pair)
    yield from (f" \n {_TEXT}\t\n\n", f"{_TEXT} 1234567 3.14 " * 400, f"-{literals}-", "")
    yield '<b>\u00c4 "don\'t" & \\n {{ 1 }} {% if %}</b>\r\n\n\n  #_* \U0001f600'


@contextmanager
def loaded(folder: Path, auto: str) -> Iterator[Any]:
    """Load a directory by one of the library's Auto classes.

    Raises:
        JobError: The library cannot, or the body fails: a template is foreign code.
    """
    import transformers

    with tempfile.TemporaryDirectory() as place, quiet():
        try:
            yield getattr(transformers, auto).from_pretrained(
                make_view(folder, Path(place)), local_files_only=True, trust_remote_code=False
            )
        except JobError:
            raise
        except Exception as error:
            raise _failed(f"{type(error).__name__}: {error}") from error


def template_of(renderer: Any) -> str:
    """Return the chat template of a tokenizer or processor.

    Raises:
        JobError: It has none.
    """
    template = renderer.chat_template
    if isinstance(template, Mapping):
        template = template.get("default")
    if not isinstance(template, str):
        raise JobError(f"model.messages: model.path has no chat template; {WAY_OUT}")
    return template


def rendered(renderer: Any, messages: Sequence[tuple[str, Any]]) -> str:
    """Return what a tokenizer or processor makes of messages; chance is the same each time.

    Raises:
        JobError: It writes too much, or what differs from run to run.
    """
    random.seed(0)
    text: str = renderer.apply_chat_template(
        [{"role": role, "content": content} for role, content in messages],
        chat_template=_NO_CLOCK + template_of(renderer),
        add_generation_prompt=True,
        tokenize=False,
    )
    if len(text) > _MOST_CHARS or _ADDRESS.search(text):
        what = "an address of memory" if len(text) <= _MOST_CHARS else "too much"
        raise JobError(f"model.messages: the chat template of model.path writes {what}; {WAY_OUT}")
    return text


def _failed(reason: str) -> JobError:
    return JobError(
        f"model.messages: the chat template of model.path fails: {clean_message(reason, 200)}; "
        f"{WAY_OUT}"
    )
