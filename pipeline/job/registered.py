"""Check names and options in a job file against the registries of tasks, runtimes and formats."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import PydanticKnownError

from pipeline.core import registry
from pipeline.core.errors import JobError
from pipeline.job.section import Section

SectionT = TypeVar("SectionT", bound=Section)
_MEANT = {"sep": "delimiter", "separator": "delimiter", "quotechar": "quote", "names": "columns"}
"""Name of an option in other readers -> its name here."""


def registered(group: str, name: str, also: tuple[str, ...] = ()) -> Any:
    """Return the object registered under a name in a job file; None for a name in `also`.

    Raises:
        PydanticKnownError: There is none; the message lists the choices.
        ValueError: The distribution that provides it is broken.
    """
    if name in also:
        return None
    try:
        return registry.load(group, name)
    except KeyError:
        *most, last = (repr(choice) for choice in (*also, *registry.names(group)))
        expected = f"{', '.join(most)} or {last}" if most else last
        raise PydanticKnownError("literal_error", {"expected": expected}) from None
    except JobError as error:
        raise ValueError(str(error)) from None


def options_of(section: type[SectionT], options: Mapping[str, Any]) -> SectionT:
    """Return valid options of a source format as its section."""
    return section.model_validate_json(json.dumps(options))


def check_options(
    section: type[Section] | None, options: Mapping[str, Any], field: str, owner: str
) -> None:
    """Check the options of a source format in a job.

    Args:
        section: The section that the format declares; None: it has no options.
        options: The options in the job.
        field: Their field in the job, for messages.
        owner: Their owner, for messages, such as `format 'csv'`.

    Raises:
        ValueError: An option is invalid; one line that names each field.
    """
    if problems := [*_problems(section, options, field, owner)]:
        raise ValueError("; ".join(problems))


def _problems(
    section: type[Section] | None, options: Mapping[str, Any], field: str, owner: str
) -> Iterator[str]:
    if section is None:
        if options:
            yield f"{field} has no effect with {owner}"
        return
    try:
        options_of(section, options)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            message = details["msg"].removeprefix("Value error, ")
            if details["type"] == "extra_forbidden":
                message = f"unknown key, {_known(str(details['loc'][-1]), section)}"
            yield f"{'.'.join([field, *map(str, details['loc'])])}: {message}"


def _known(name: str, section: type[Section]) -> str:
    """Return a hint: the option that was probably meant, or all of them."""
    fields = [*section.model_fields]
    near = difflib.get_close_matches(_MEANT.get(name, name), fields, n=1)
    return f"did you mean {near[0]}?" if near else f"allowed are {', '.join(fields)}"
