"""Read a job file: safe YAML, overrides, two substitutions, and one clear error.

Nothing here touches storage, Ray or torch.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from pipeline.errors import JobError
from pipeline.job import Job
from pipeline.job_yaml import parse_value, read_yaml

_SUBSTITUTION = re.compile(r"\$\{([^}]*)\}")


def load_job(
    path: str, *, date: dt.date, overrides: Sequence[str] = (), with_environment: bool = True
) -> Job:
    """Read, substitute and validate a job file.

    Args:
        path: Path of the YAML file.
        date: The logical date, the value of `${date}`.
        overrides: `section.field=value` strings; the values are YAML.
        with_environment: Fill in `${env:NAME}`; False leaves it, to check a job that another
            machine will run.

    Raises:
        JobError: The file, a field or an override is wrong; one line says which and what is right.
    """
    document = read_yaml(path)
    for override in overrides:
        _apply_override(document, override)
    return parse_job(document, date=date, origin=path, with_environment=with_environment)


def parse_job(
    document: Mapping[str, Any], *, date: dt.date, origin: str, with_environment: bool = True
) -> Job:
    """Substitute and validate an already loaded document; `origin` names it in errors."""
    environment = os.environ if with_environment else None
    substituted = _Substitution(date, origin, environment).apply(dict(document))
    try:
        return Job.model_validate_json(_to_json(substituted, origin))
    except ValidationError as error:
        raise JobError(_describe(error, origin)) from None


def _to_json(document: Any, origin: str) -> str:
    # JSON mode keeps validation strict yet lets YAML lists become tuples.

    try:
        return json.dumps(document)
    except TypeError as error:
        raise JobError(f"{origin}: only text, numbers, lists and mappings: {error}") from None


def _apply_override(document: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    path = name.strip().split(".")
    if not separator or len(path) < 2 or not all(path):
        raise JobError(f"--set {name}: write section.field=value, as in model.batch_size=64")
    target: Any = document
    for key in path[:-1]:
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            raise JobError(f"--set {name}: {key} is not a section")
    try:
        target[path[-1]] = parse_value(text)
    except ValueError:
        raise JobError(f"--set {name}: the value is not valid YAML") from None


@dataclass(frozen=True)
class _Substitution:
    """Fills in `${date}` and `${env:NAME}`, and nothing else."""

    date: dt.date
    origin: str
    environment: Mapping[str, str] | None
    """None leaves `${env:NAME}` as it is."""

    def apply(self, value: Any) -> Any:
        """Substitute in all texts of a document."""
        if isinstance(value, dict):
            return {key: self.apply(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.apply(item) for item in value]
        if isinstance(value, dt.date | dt.datetime):
            return value.isoformat()
        return _SUBSTITUTION.sub(self._replace, value) if isinstance(value, str) else value

    def _replace(self, match: re.Match[str]) -> str:
        name = match.group(1)
        if name == "date":
            return self.date.isoformat()
        if not name.startswith("env:"):
            raise JobError(
                f"{self.origin}: ${{{name}}}: only ${{date}} and ${{env:NAME}} are substituted"
            )
        if self.environment is None:
            return match.group(0)
        variable = name.removeprefix("env:")
        if variable not in self.environment:
            raise JobError(
                f"{self.origin}: ${{{name}}}: environment variable {variable} is not set"
            )
        return self.environment[variable]


def _describe(error: ValidationError, origin: str) -> str:
    details = error.errors(include_url=False, include_context=True)
    first = details[0]
    field = ".".join(str(part) for part in first["loc"]) or "job"
    if first["type"] == "extra_forbidden":
        text = f"{field}: unknown key; {_allowed(first['loc'])}"
    elif first["type"] == "missing":
        text = f"{field}: required but missing"
    else:
        message = first["msg"].removeprefix("Value error, ")
        text = f"{field}{_shown(field, first['input'])}: {message}"
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return f"{origin}: {text}{more}"


def _shown(field: str, value: Any) -> str:
    """Show a wrong value, unless credentials may be in it."""
    is_open = "storage_options" not in field and not isinstance(value, dict | list)
    return f" = {value!r:.80}" if is_open else ""


def _allowed(location: tuple[int | str, ...]) -> str:
    model: type[BaseModel] = Job
    for part in location[:-1]:
        if isinstance(part, int):  # of a list of sections
            continue
        annotation = model.model_fields[str(part)].annotation
        # So is `Golden | None`, and a list of them.
        sections = [
            kind
            for kind in (annotation, *get_args(annotation))
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        if not sections:
            break
        model = sections[0]
    return "allowed are " + ", ".join(model.model_fields)
