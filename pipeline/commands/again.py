"""The options that decide the last lines of a command: `--ok-exit`, and the command line itself."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import PurePath

from pipeline.core.environment import SUBMITTED
from pipeline.core.errors import GateRefused, InputMissing, JobError
from pipeline.core.printable import clean_message, printable
from pipeline.process.keeper import prepare_last_lines
from pipeline.process.shared_notes import note

_ALLOWED = range(GateRefused.exit_code, InputMissing.exit_code + 1)
_HIDDEN = "..."


def prepare_end(
    date: str | None, ok_exit: str | None = None, option: str = "--date", every: str = "day"
) -> str:
    """Prepare the last lines of a command, and return the date that it is about.

    Args:
        date: As it was given; the command that goes on tomorrow has to name today.
        ok_exit: The value of --ok-exit.
        option: That names the date: of a command about many dates the last one.
        every: `day` or `hour`: which is now, if no date was given.

    Raises:
        JobError: That is no list of exit codes which may count as success.
    """
    from pipeline.job.reading.dates import date_text, now, parse_date

    day = date_text(now(every) if date is None else parse_date(date))
    command = None if os.environ.get(SUBMITTED) else the_same(sys.argv, day, option)
    prepare_last_lines(command, _codes(ok_exit))
    return day


def prepare_ok_exit(ok_exit: str | None) -> None:
    """Prepare the last line of a command that nothing goes on from."""
    prepare_last_lines(None, _codes(ok_exit))


def prepare_end_of_same() -> None:
    """Prepare the last lines of a command that is about no date."""
    prepare_last_lines(the_same(sys.argv, "", None), frozenset())


def goes_on_with_dates() -> None:
    """Note that dates were begun: whatever one ended with, the same command again goes on."""
    note(goes_on=[*range(1, InputMissing.exit_code + 1)])


def _codes(text: str | None) -> frozenset[int]:
    if text is None:
        return frozenset()
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and int(word) in _ALLOWED for word in words):
        raise JobError(
            f"--ok-exit {text}: write exit codes from {_ALLOWED[0]} to {_ALLOWED[-1]}, as in 3,4"
        )
    return frozenset(map(int, words))


def the_same(argv: Sequence[str], day: str, option: str | None = "--date") -> str:
    """Return the command that does the same for that day: one printable line, without secrets."""
    program, *rest = argv
    name = ["pipeline"] if PurePath(program).name == "pipeline" else ["python", "-m", "pipeline"]
    shown = [_without_secrets(word) for word in rest]
    if option and not any(word == option or word.startswith(f"{option}=") for word in rest):
        shown += [option, day]
    return printable(shlex.join([*name, *shown]))


def _without_secrets(word: str) -> str:
    from pipeline.storage.errors import redact

    field, separator, value = word.removeprefix("--set=").partition("=")
    if "storage_options" in field or "storage_options" in value:
        return word[: word.index(field) + len(field)] + separator + _HIDDEN
    hidden = redact(word)
    return word if hidden == clean_message(word, len(hidden)) else hidden
