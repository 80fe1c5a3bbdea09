"""Command lines that stand in files: what they are made of, and whether the parser takes them."""

from __future__ import annotations

import re
import shlex
from typing import Any

from typer.main import get_command

from pipeline.commands.app import app

_COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
_PIPELINE = re.compile(r"(?:^|[ /])pipeline (?=[a-z])")
_END = re.compile(r"\s(?:>>?|2>|&&|\|)")


def parsed(line: str) -> dict[str, Any]:
    """The arguments of the first `pipeline COMMAND ...` of a line of shell, and the command's name.

    Raises:
        click.UsageError: The parser does not take them.
    """
    start = _PIPELINE.search(line)
    assert start is not None, line
    name, *words = shlex.split(_END.split(line[start.end() :])[0])
    context = _COMMANDS[name].make_context(name, words)
    return {"command": name, **context.params}
