"""Describe all errors of a job at once, each with its line and the remedy.

Values that may hold credentials are hidden: those of `storage_options`, and those from environment
variables.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from pipeline.core.errors import JobError, JobErrors
from pipeline.job.job import Job
from pipeline.job.reading.substitution import Secrets
from pipeline.job.reading.yaml_reader import Document, Path, Problem

_MAX_SHOWN = 20
_MAX_CHARS = 80
_LAST_LINE = 1 << 62
_CREDENTIALS = re.compile(r"//[^/@\s]*@")
_CHOICE = re.compile(r"'([^']*)'")
_RESIZES = "to choose how images reach size_px, use resize: shortest, stretch, pad or none"
_PAD = "for a letterbox, use resize: pad"
_GRAY = "for one channel, use channels: gray"
_ARGUMENTS = "for the arguments of a factory, use model.args"
_DIRECTORY = "for a model directory, use model.path"
_TEXTS = "for texts, use format parquet, jsonl or csv, and source.text_column"
_FACTORY_ARGUMENTS = ("factory_args", "factory_kwargs", "kwargs")
_HINTS: Mapping[Path, str] = {
    **dict.fromkeys([("model", name) for name in _FACTORY_ARGUMENTS], _ARGUMENTS),
    **dict.fromkeys([("model", name) for name in ("timm", "hf")], _DIRECTORY),
    ("source", "text"): _TEXTS,
    **dict.fromkeys([("transform", name) for name in ("crop", "squash")], _RESIZES),
    **dict.fromkeys([("transform", name) for name in ("pad", "letterbox")], _PAD),
    **dict.fromkeys([("transform", name) for name in ("grey", "gray", "grayscale")], _GRAY),
}
"""Wrong field -> what to use instead."""
_PATTERN_HINTS: Mapping[Path, str] = {
    ("sink", "partition"): (
        "write key=value, such as date=2026-11-24: letters, digits and _, in the value also . : -"
    )
}
"""Field with a pattern -> what to write."""
_CHOICE_HINTS: Mapping[tuple[Path, str], str] = {
    (("transform", "channels"), "grey"): "did you mean gray?",
    **dict.fromkeys([(("transform", "resize"), value) for value in ("letterbox", "fit")], _PAD),
    **dict.fromkeys(
        [(("transform", "resize"), value) for value in ("squash", "warp", "exact")],
        "to resize both sides to size_px, use resize: stretch",
    ),
    **dict.fromkeys([(("source", "format"), value) for value in ("text", "json")], _TEXTS),
    **dict.fromkeys(
        [
            (("model", "task"), value)
            for value in ("detection", "object-detection", "object_detection")
        ],
        "for boxes, use task: detect",
    ),
}


@dataclass(frozen=True)
class Origin:
    """The document and the overrides of a job."""

    name: str
    """The file name, or another name for messages."""
    document: Document
    overrides: tuple[Path, ...] = ()
    """The fields set by `--set`."""

    def place(self, problem: Problem) -> tuple[int, str]:
        """Return the place of a problem: a number to sort by, and a prefix to show."""
        path = problem.path
        depth, line = self.document.line(path)
        is_override = any(path[: len(override)] == override for override in self.overrides)
        if depth < len(path):
            is_override |= any(override[: len(path)] == path for override in self.overrides)
        is_override |= any(self._is_about(override, problem) for override in self.overrides)
        if problem.line is None and is_override:
            return _LAST_LINE, "--set: "
        line = problem.line or line
        return (0, "") if line is None else (line, f"line {line}: ")

    def _is_about(self, override: Path, problem: Problem) -> bool:
        """Tell whether the problem of a section names a field that only an override sets."""
        depth, rest = len(problem.path), override[len(problem.path) :]
        if override[:depth] != problem.path or not rest:
            return False
        num_written = self.document.line(override)[0]
        if num_written == len(override):
            return False
        return str(override[max(num_written, depth)]) in re.findall(r"\w+", problem.text)


def raise_problems(origin: Origin, problems: Iterable[Problem]) -> None:
    """Raise all problems as one error, in the order of the file.

    Raises:
        JobError: There is one problem.
        JobErrors: There are several.
    """
    placed = sorted((*origin.place(problem), problem.text) for problem in problems)
    lines = list(dict.fromkeys(_one_line(f"{place}{text}") for _, place, text in placed))
    if not lines:
        return
    name = _one_line(origin.name)
    if len(lines) == 1:
        raise JobError(f"{name}: {lines[0]}")
    shown, num_more = lines[:_MAX_SHOWN], len(lines) - _MAX_SHOWN
    more = [f"and {num_more} more"] if num_more > 0 else []
    raise JobErrors("\n".join([f"{name}: {len(lines)} errors", *shown, *more]))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def describe(error: ValidationError, job: Any, secrets: Secrets) -> Iterator[Problem]:
    """Yield the problems in a validation error, without secrets."""
    for details in error.errors(include_url=False):
        path = _path(details, job)
        if any(path[: len(parent)] == parent for parent in secrets.unknown):
            continue  # reported already
        text = _text(path, details, is_secret=path in secrets.paths)
        yield Problem(path, secrets.hide(text))


def _path(details: Mapping[str, Any], job: Any) -> Path:
    """Return the path of the wrong value: the location of the error without names of types."""
    value: Any = job
    path: Path = ()
    location = details["loc"]
    for index, part in enumerate(location):
        is_absent = details["type"] == "missing" and index == len(location) - 1
        if isinstance(value, dict) and (part in value or is_absent):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            continue
        path = (*path, part)
    return path


def _text(path: Path, details: Mapping[str, Any], *, is_secret: bool) -> str:
    field, value, error_type = ".".join(map(str, path)) or "job", details["input"], details["type"]
    if error_type == "extra_forbidden":
        return f"{field}: unknown key{_instead(path)}"
    if error_type == "missing":
        return f"{field}: required but missing"
    if error_type == "model_type":
        return f"{field}{_shown(path, value, is_secret)}: {_as_section(path)}"
    message = details["msg"].removeprefix("Value error, ")
    if error_type == "string_pattern_mismatch":
        message = _PATTERN_HINTS.get(path, message)
    if error_type == "literal_error":
        message += _choice(path, value, _CHOICE.findall(details["ctx"]["expected"]))
    if error_type == "string_type" and isinstance(value, bool | int | float) and not is_secret:
        message += "; quote it to make it a string"
    return f"{field}{_shown(path, value, is_secret)}: {message}"


def _shown(path: Path, value: Any, is_secret: bool) -> str:
    """Show a wrong value, unless credentials may be in it."""
    is_open = path and not is_secret and "storage_options" not in path
    if not is_open or isinstance(value, dict | list):
        return ""
    return f" = {_CREDENTIALS.sub('//...@', repr(value)):.{_MAX_CHARS}}"


def _choice(path: Path, value: Any, allowed: list[str]) -> str:
    if hint := _CHOICE_HINTS.get((path, str(value))):
        return f"; {hint}"
    return _did_you_mean(str(value), allowed)


def _instead(path: Path) -> str:
    """Return a hint for an unknown key."""
    section, allowed = _section_of(path)
    name = str(path[-1])
    if hint := _HINTS.get(path):
        text = f"; {hint}; allowed"
    elif meant := _did_you_mean(name, allowed):
        return meant
    elif others := [home for home in _homes(name) if home != section]:
        text = f"; it belongs to {' or '.join(others)}; allowed"
    else:
        text = "; allowed"
    return f"{text} are {', '.join(allowed)}"


def _did_you_mean(name: str, allowed: Iterable[str]) -> str:
    near = difflib.get_close_matches(name[:_MAX_CHARS], list(allowed), n=1)
    return f", did you mean {near[0]}?" if near else ""


def _as_section(path: Path) -> str:
    _, allowed = _section_of((*path, ""))
    example = "{mode: off}" if "mode" in allowed else "{" + allowed[0] + ": ...}"
    return f"expected fields, such as {example}; allowed are {', '.join(allowed)}"


def _homes(name: str) -> Iterator[str]:
    """Yield the sections that have a field of this name."""
    for section, field in Job.model_fields.items():
        section_type = field.annotation
        if (
            isinstance(section_type, type)
            and issubclass(section_type, BaseModel)
            and name in section_type.model_fields
        ):
            yield section


def _section_of(path: Path) -> tuple[str, list[str]]:
    """Return the name and the fields of the section that the last part of a path is in."""
    model: type[BaseModel] = Job
    names = [str(part) for part in path[:-1] if not isinstance(part, int)]
    for name in names:
        field = model.model_fields.get(name)
        types = _flat(field.annotation) if field else ()
        sections = [t for t in types if isinstance(t, type) and issubclass(t, BaseModel)]
        model = sections[0] if sections else model  # the name of an input, chosen by the user
    fields = model.model_fields.items()
    return ".".join(names), [field.alias or name for name, field in fields]


def _flat(annotation: Any) -> Iterator[Any]:
    """Yield a type and its arguments: for `tuple[str | Golden, ...]` also `Golden`."""
    yield annotation
    for inner in get_args(annotation):
        yield from _flat(inner)
