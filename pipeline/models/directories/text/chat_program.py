"""Render a chat template, a program of the model directory's: in a sandbox, and with bounds.

Standard input is JSON: `template`, `messages`, `tokens` (name -> text of a special token). Standard
output is the text. An error is the last line of standard error.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

_CPU_S, _MAX_BYTES, _MAX_CHARS = 5, 1 << 30, 1 << 20
_GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
"""Marks for training, which change nothing of the text."""
_ADDRESS = re.compile(r"\bat 0x[0-9a-f]+>", re.IGNORECASE)


def render(template: str, messages: list[Any], tokens: Mapping[str, str]) -> str:
    """Render a template as transformers does, with a prompt for the assistant's turn at the end.

    A template can ask for nothing that differs from run to run, such as the time or chance: the
    same job must give the same prompts.

    Raises:
        TemplateError: It fails, reads what the sandbox does not show, writes too much, or an
            address of memory.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    del environment.filters["random"]
    for name in ("lipsum", "cycler", "joiner"):
        del environment.globals[name]
    environment.globals["raise_exception"] = _refuse
    parsed = environment.from_string(_GENERATION.sub("", template))
    pieces, num_chars = [], 0
    for piece in parsed.generate(messages=messages, add_generation_prompt=True, **tokens):
        pieces.append(piece)
        num_chars += len(piece)
        if num_chars > _MAX_CHARS:
            raise TemplateError(f"it writes more than {_MAX_CHARS:,} characters")
    text = "".join(pieces)
    if _ADDRESS.search(text):
        raise TemplateError("it writes an address of memory, which differs from run to run")
    return text


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    # The built-in filter escapes for HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def main() -> int:
    """Read, render, write."""
    given = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
    try:
        text = render(given["template"], given["messages"], given["tokens"])
    except Exception as error:  # noqa: BLE001  # the template is foreign code
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    sys.stdout.write(json.dumps(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
