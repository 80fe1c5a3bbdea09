"""Ask a person at a terminal for what a command was not given."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline.core.errors import JobError
from pipeline.core.printable import printable


def on_terminal() -> bool:
    """Tell whether there is a person to ask: stdin and stderr are a terminal."""
    try:
        return sys.stdin.isatty() and sys.stderr.isatty()
    except (AttributeError, ValueError):  # closed, or none
        return False


def given_or_asked(value: str | None, name: str, what: str, *, asks: bool) -> str:
    """Return a value that was given, or ask for it until there is one.

    Raises:
        JobError: It is missing, and there is no terminal or no answer.
    """
    if value is None and not asks:
        raise JobError(f"Missing {name}. On a terminal it would be asked for.")
    while not value:
        value = _answer(f"{what}\n{name.split()[-1]}: ", f"Missing {name}")
    return value


def choose(field: str, choices: Sequence[str]) -> str:
    """Ask for one of several values of a field of the job.

    Raises:
        JobError: The input ends without an answer.
    """
    shown = "".join(f"  {number} {printable(each)}\n" for number, each in enumerate(choices, 1))
    numbered = {str(number): each for number, each in enumerate(choices, 1)}
    while True:
        answer = _answer(f"Which one is {field}?\n{shown}Name or number: ", f"Missing {field}")
        if answer in choices or answer in numbered:
            return answer if answer in choices else numbered[answer]


def _answer(question: str, if_none: str) -> str:
    sys.stderr.write(question)
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:  # Ctrl-D
        sys.stderr.write("\n")
        raise JobError(f"{if_none}: nothing was answered")
    return line.strip()
