"""A job that is made of an input and a model: its sections, its file, and what to say of it."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.core.errors import JobError
from pipeline.core.printable import num_of, printable
from pipeline.core.registry import SOURCES, load
from pipeline.job.job import Job
from pipeline.job.reading.loader import Overrides
from pipeline.models.directories.facts import DirectoryFacts
from pipeline.models.directories.opening import open_facts
from pipeline.operations.first_steps.columns import Fields, choose_columns, choose_id, inputs_in
from pipeline.operations.first_steps.first_rows import Found, look
from pipeline.operations.jobs import load_job
from pipeline.runs.preparing.prepare import job_model

_INPUTS = ("image_column", "audio_column", "uri_column", "text_column", "features", "inputs")
"""Fields of `source` that name the input: if the caller sets one, none is chosen."""
_PAIRS = "score"
Lines = dict[str, Fields]
"""Section -> its fields, each with its value and why."""


@dataclass(frozen=True)
class Draft:
    """A job that was made, and checked as far as a job can be without reading all of its input."""

    job: Job
    text: str
    """The job file, with a reason behind each line."""
    said: tuple[str, ...]
    """What was found, a line each: the input, the model."""


def draft_job(
    uri: str, model: str, to: str, overrides: Overrides = (), allow_import: Sequence[str] = ()
) -> Draft:
    """Make a job.

    Args:
        uri: A folder, a file or a glob of the input.
        model: A model directory or an .onnx file, the name of an installed model, or a factory
            `module:function`.
        to: The root of the output.
        overrides: Fields that are set over those that are found.
        allow_import: Prefixes of the modules that the job may name.

    Raises:
        InputMissing: There is no input.
        JobError: Something is ambiguous, wrong or missing; one line with the choices.
    """
    for text in (uri, model, to):
        if "${" in text:
            raise JobError(f"{text}: write ${{...}} into a job file; pipeline init makes one")
    given = _given(overrides)
    found = look(uri, given.get("source.format"))
    lines: Lines = {
        "source": {
            "uri": (_absolute(uri), num_of(len(found.shards), "file")),
            "format": (found.format, "by the names of the files"),
        },
        "model": _model(model),
        "sink": {"uri": (_absolute(to), "predictions, quarantine and reports")},
    }
    lines["source"] |= _columns(found, lines["model"], given)
    sections = {
        name: {field: value for field, (value, _) in fields.items()}
        for name, fields in lines.items()
    }
    job = load_job(copy.deepcopy(sections), overrides=overrides)
    for name, value in given.items():
        _set(lines, name.split("."), value)
    spec = job_model(job, allow_import)
    labels = f", {num_of(len(spec.task.labels), 'label')}" if spec.task.labels else ""
    size = f", {spec.task.embedding_dim} numbers a row" if spec.task.embedding_dim else ""
    said = f"{spec.shown_name}, task {spec.task.kind}{labels}{size}"
    first = next(iter(lines["model"]))
    lines["model"][first] = (lines["model"][first][0], said)
    return Draft(job, _text(lines), (f"input: {_input(found, job)}", f"model: {printable(said)}"))


def _given(overrides: Overrides) -> dict[str, Any]:
    """Return the fields that the caller sets, by their names."""
    from pipeline.job.reading.yaml_reader import parse_value

    if isinstance(overrides, Mapping):
        return dict(overrides)
    pairs = (text.partition("=") for text in overrides)
    try:
        return {name.strip(): parse_value(value) for name, _, value in pairs}
    except ValueError as error:
        raise JobError(f"--set: the value is not valid YAML: {error}") from None


def _set(lines: Lines, path: Sequence[str], value: Any) -> None:
    """Put a field that the caller sets into the job, also one inside another."""
    section, field, *inner = path
    fields = lines.setdefault(section, {})
    if inner:
        before, _ = fields.get(field, ({}, ""))
        whole = copy.deepcopy(before) if isinstance(before, dict) else {}
        target = whole
        for key in inner[:-1]:
            target = target.setdefault(key, {})
        target[inner[-1]] = value
        value = whole
    fields[field] = (value, "as it was asked for")


def _absolute(uri: str) -> str:
    """Return a path that means the same from everywhere."""
    return uri if "://" in uri else os.path.abspath(uri)


def _model(model: str) -> Fields:
    """Return the field that names a model, by what it looks like."""
    if "://" in model or Path(model).exists() or model.endswith(".onnx"):
        return {"path": (_absolute(model), "")}
    if ":" in model:
        return {"factory": (model, "")}
    return {"name": (model, "")}


def _columns(found: Found, model: Fields, given: Mapping[str, Any]) -> Fields:
    rows = found.first_rows()
    if rows is None:
        is_tar = load(SOURCES, found.format).counts_rows == "reading"
        hears = is_tar and "source.input" not in given and _taken(model, "image")[0] == "audio"
        return {"input": ("audio", "the model hears clips of sound")} if hears else {}
    chosen: Fields = {}
    if not any(f"source.{field}" in given for field in _INPUTS):
        takes, names, is_pair = _taken(model, next(iter(inputs_in(rows)), ""))
        chosen = choose_columns(rows, takes, names, is_pair=is_pair)
    if "source.id_column" not in given:
        chosen |= choose_id(rows)
    return chosen


def _taken(model: Fields, side: str) -> tuple[str | None, Sequence[str], bool]:
    """Return what a model takes, the columns that it takes by name, and whether it takes pairs.

    Args:
        model: The field that names it.
        side: What the columns hold, for a model of images and texts.
    """
    if "path" in model:
        _, facts = open_facts(model["path"][0], {}, side)
        names = tuple(each.name for each in facts.columns)
        return facts.input, names, _takes_pairs(facts)
    return ("image" if "name" in model else None), (), False


def _takes_pairs(facts: DirectoryFacts) -> bool:
    return facts.input == "text" and facts.tasks[:1] == (_PAIRS,)


def _input(found: Found, job: Job) -> str:
    source = job.source
    what = f"{num_of(len(found.shards), 'file')} of format {found.format}"
    if load(SOURCES, found.format).counts_rows == "listing":
        return f"{what}; a file is a row, its path is the id"
    names = source.encoded.what
    if found.first_rows() is not None:
        names = ", ".join(source.input_columns.names)
    row = source.id_column or "the shard and the row's number"
    return printable(f"{what}; {source.input_name} of {names}; the id is {row}")[:300]


def _text(lines: Lines) -> str:
    """Return the job file."""
    written = [
        "# Made of the input and the model by `pipeline predict` or `pipeline init`. All fields:",
        "# `pipeline schema job`. `pipeline plan` says what a run of this would do.",
    ]
    for section, fields in lines.items():
        written += ["", f"{section}:"]
        for field, (value, why) in fields.items():
            told = f"  # {printable(why)[:80]}" if why else ""
            written.append(f"  {field}: {_value(value)}{told}")
    return "\n".join(written) + "\n"


def _value(value: Any) -> str:
    """Return a value in one line of YAML."""
    dumped = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return dumped.removesuffix("...\n").strip()
