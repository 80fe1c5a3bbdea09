"""Read a job file: safe YAML, overrides, substitutions, and all errors at once.

Nothing here uses storage, Ray or torch.
"""

from __future__ import annotations

import copy
import datetime as dt
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from shlex import quote
from typing import Any

from pydantic import ValidationError

from pipeline.core.errors import JobError
from pipeline.core.output_folders import CONTROL
from pipeline.job.job import Job
from pipeline.job.reading.problems import Origin, describe, raise_problems
from pipeline.job.reading.substitution import Substitution
from pipeline.job.reading.yaml_reader import Document, Path, Problem, parse_value, read_yaml

Overrides = Mapping[str, Any] | Sequence[str]
"""Fields that override those of a job: `{"model.top_k": 3}`, or strings `section.field=value` with
values in YAML."""


def read_job(
    path: str, *, date: dt.date, overrides: Overrides = (), is_elsewhere: bool = False
) -> Job:
    """Read, substitute and validate a job file.

    Args:
        path: Path of the YAML file.
        date: The value of `${date}`; a `datetime` also sets `${hour}`.
        overrides: Fields that override those of the file.
        is_elsewhere: Another machine will run it: `${env:NAME}` is not substituted, and relative
            paths are refused.

    Raises:
        JobError: The file, a field or an override is wrong; it has the line and the remedy.
    """
    if os.path.isdir(os.path.join(path, CONTROL)):
        raise JobError(f"{path} is an output; give the job file that writes it")
    if os.path.isdir(path):
        raise JobError(
            f"{path} is a folder; give a job file: pipeline run jobs/classify_images.yaml "
            f"--set source.uri={quote(path)} --set sink.uri=out"
        )
    document = read_yaml(path)
    origin = Origin(path, document, apply_overrides(overrides, document.value))
    return _validated(origin, date, is_elsewhere=is_elsewhere)


def parse_job(
    document: Mapping[str, Any], *, date: dt.date, origin: str, overrides: Overrides = ()
) -> Job:
    """Substitute and validate a parsed document; `origin` names it in errors.

    Raises:
        JobError: A field is wrong.
    """
    value = copy.deepcopy(dict(document)) if overrides else dict(document)
    overridden = apply_overrides(overrides, value)
    return _validated(Origin(origin, Document(value), overridden), date, is_elsewhere=False)


def _validated(origin: Origin, date: dt.date, *, is_elsewhere: bool) -> Job:
    problems = list(origin.document.problems)
    substitution = Substitution(date, None if is_elsewhere else os.environ)
    try:
        document = substitution.apply(origin.document.value)
        # Strict validation turns lists into tuples only in JSON mode.
        text = json.dumps(document)
    except (TypeError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise JobError(f"{origin.name}: not a valid job: {reason}") from None
    problems += substitution.problems
    try:
        job = Job.model_validate_json(text)
    except ValidationError as error:
        problems += describe(error, json.loads(text), substitution.secrets)
    else:
        problems += problems_of_relative_paths(job) if is_elsewhere else []
    raise_problems(origin, problems)
    return job


def apply_overrides(overrides: Overrides, document: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Set fields of a document, and return their paths.

    Raises:
        JobError: As `parse_overrides`, or the parent of a field is not a section.
    """
    given = parse_overrides(overrides).items()
    return tuple(_set(document, name, value) for name, value in given)


def parse_overrides(overrides: Overrides) -> dict[str, Any]:
    """Return overrides as a mapping from field to value.

    Raises:
        JobError: A string is not `section.field=value`, or its value is not YAML.
    """
    return dict(overrides if isinstance(overrides, Mapping) else map(_parsed, overrides))


def _parsed(override: str) -> tuple[str, Any]:
    """Return the name and the value of `section.field=value`."""
    name, separator, text = override.partition("=")
    path = name.strip().split(".")
    if not separator or len(path) < 2 or not all(path):
        raise JobError(f"--set {name}: {_how_to_override(path[0], text)}")
    try:
        return name.strip(), parse_value(text)
    except ValueError as error:
        in_quotes = f"--set '{name}=\"...\"'"
        raise JobError(
            f"--set {name}: the value is not valid YAML: {error}; quote strings: {in_quotes}"
        ) from None


def _set(document: dict[str, Any], name: str, value: Any) -> tuple[str, ...]:
    path = name.split(".")
    if len(path) < 2 or not all(path):
        raise JobError(f"override {name}: {_how_to_override(path[0], '')}")
    target: Any = document
    for key in path[:-1]:
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            raise JobError(f"--set {name}: {key} is not a section")
    target[path[-1]] = value
    return tuple(path)


def _how_to_override(section: str, text: str) -> str:
    """Return how to write an override, with a hint if the value is a whole section."""
    try:
        value = parse_value(text)
    except ValueError:
        value = None
    if section not in Job.model_fields or not isinstance(value, dict) or not value:
        return "write section.field=value, such as model.batch_size=64"
    fields = " ".join(f"--set {section}.{field}=..." for field in value)
    return f"set the fields of a section one by one: {fields}"


PATH_FIELDS: tuple[Path, ...] = (
    ("source", "uri"),
    ("source", "files"),
    ("source", "uri_roots"),
    ("source", "uri_base"),
    ("text", "tokenizer"),
    ("model", "path"),
    ("model", "weights"),
    ("model", "labels"),
    ("model", "generate", "schema"),
    ("sink", "uri"),
    ("gates", "golden", "uri"),
    ("metrics", "textfile"),
)
"""Fields with paths or URIs. Lists of `files` and `labels`, and inline schemas, have none."""
_LISTS_OF_PATHS = (("source", "uri_roots"),)


def problems_of_relative_paths(job: Job) -> Iterator[Problem]:
    """Yield a problem for every relative path of a job."""
    for path, text in _named(job):
        if not text.startswith(("/", "${env:")) and "://" not in text:
            field = ".".join(map(str, path))
            yield Problem(
                path,
                f"{field} = {text:.80} is relative, but the job runs on another machine: give an "
                "absolute path or a URI",
            )


def _named(job: Job) -> Iterator[tuple[Path, str]]:
    for index, entry in enumerate(job.source.features):
        if isinstance(text := getattr(entry, "categories", None), str):
            yield ("source", "features", index, "categories"), text
    for field in PATH_FIELDS:
        value: Any = job
        for name in field:
            # pydantic models have a method `schema`.
            value = getattr(value, "schema_" if name == "schema" else str(name), None)
        if isinstance(value, str):
            yield field, value
        elif value and field in _LISTS_OF_PATHS:
            yield from (((*field, index), item) for index, item in enumerate(value))
