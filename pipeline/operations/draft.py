"""Make a job of an input and a model: its sections, and its file with a reason per line."""

from __future__ import annotations

import copy
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline.core.errors import JobError
from pipeline.core.printable import num_of, printable
from pipeline.core.registry import INPUTS, SOURCES, get, load
from pipeline.job.job import Job
from pipeline.job.reading.loader import Overrides, apply_overrides, parse_overrides
from pipeline.models.directories.facts import DirectoryFacts
from pipeline.models.directories.opening import open_facts
from pipeline.models.resolving.named_model import require_installed
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.tasks.embed import EMBED
from pipeline.operations.arguments import load_job
from pipeline.operations.draft_input import (
    Fields,
    InputFiles,
    choose_columns,
    choose_id,
    described,
    inputs_in,
    look,
    names_of,
)

_INPUTS = ("image_column", "audio_column", "uri_column", "text_column", "features", "inputs")
"""Fields of `source` that name the input; if the caller sets one, none is chosen."""
_PAIRS, _OTHERS = "score", "fits as well"
MARK = "# Made of the input and the model by `pipeline predict` or `pipeline init`. All fields:"
"""The first line of a job file that was made here."""
StrPath = str | os.PathLike[str]
Lines = dict[str, Fields]
"""Section -> its fields, each with its value and the reason."""


@dataclass(frozen=True)
class Draft:
    """A job that was made and checked, as far as possible without reading all of its input."""

    job: Job
    text: str
    """The job file, with a reason behind each line."""
    notes: tuple[str, ...]
    """What was detected: one line each for the input and the model."""


def draft_job(
    uri: StrPath,
    model: StrPath,
    to: StrPath,
    overrides: Overrides = (),
    allow_import: Sequence[str] = (),
    features: Sequence[str] = (),
    *,
    command: str = "predict",
) -> Draft:
    """Make a job.

    Args:
        uri: A folder, a file or a glob of the input.
        model: A model directory or an .onnx file, the name of an installed model, or a factory
            `module:function`.
        to: Root of the output.
        overrides: Fields that override those that were detected.
        allow_import: Prefixes of the modules that the job may name.
        features: `source.features`, the model's columns, in order.
        command: The command that an error repeats, with the missing answer.

    Raises:
        InputMissing: There is no input.
        JobError: Something is ambiguous, wrong or missing; one line with the choices.
    """
    uri, model, to = os.fspath(uri), os.fspath(model), os.fspath(to)
    for text in (uri, model, to):
        if "${" in text:
            raise JobError(f"{text}: ${{...}} is for job files; pipeline init writes one")
    asking = _command(command, uri, model, to, overrides)
    overrides = _with_features(overrides, features)
    known: dict[str, Any] = {}
    apply_overrides(overrides, known)
    given = parse_overrides(overrides)
    named = _model(model)
    files = look(uri, known.get("source", {}))
    is_lake, by_names = files.source.is_lake_table, "by the names of the files"
    lines: Lines = {
        "source": {
            "uri": (_absolute(uri), num_of(len(files.shards), "file")),
            "format": (files.format, "by the log of the table" if is_lake else by_names),
        },
        "model": named,
        "sink": {"uri": (_absolute(to), "predictions, quarantine and reports")},
    }
    lines["source"] |= _columns(files, lines["model"], given, asking)
    sections = {
        name: {field: value for field, (value, _) in fields.items()}
        for name, fields in lines.items()
    }
    job = load_job(copy.deepcopy(sections), overrides=overrides)
    for name, value in given.items():
        _set(lines, name.split("."), value)
    spec = resolve_model(job, allow_import)
    labels = f", {num_of(len(spec.task.labels), 'label')}" if spec.task.labels else ""
    is_vector = spec.task.kind == EMBED and spec.task.embedding_dim
    size = f", vectors of {spec.task.embedding_dim} numbers" if is_vector else ""
    description = f"{spec.shown_name}, task {spec.task.kind}{labels}{size}"
    first = next(iter(lines["model"]))
    lines["model"][first] = (lines["model"][first][0], description)
    looked = _input(files, job, lines["source"])
    return Draft(job, _text(lines), (*looked, f"model: {printable(description)}"))


def _command(command: str, uri: str, model: str, to: str, overrides: Overrides) -> str:
    """Return the command line of the caller, for copying."""
    words = ["pipeline", command, uri, "--model", model, "--to", to]
    for name, value in parse_overrides(overrides).items():
        words += ["--set", f"{name}={json.dumps(value)}"]
    return shlex.join(words)


def _with_features(overrides: Overrides, features: Sequence[str]) -> Overrides:
    """Return overrides with the model's columns added."""
    given = parse_overrides(overrides)
    if features and "source.features" in given:
        raise JobError("source.features is given twice: by --features and by --set")
    return given | ({"source.features": [*features]} if features else {})


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
    """Return the field that names a model, by what it looks like.

    Raises:
        JobError: It is no path, and nothing that is installed.
    """
    if "://" in model or os.path.exists(model) or model.endswith(".onnx"):
        return {"path": (_absolute(model), "")}
    if ":" in model:
        return {"factory": (model, "")}
    require_installed(model)
    return {"name": (model, "")}


def _columns(files: InputFiles, model: Fields, given: Mapping[str, Any], asking: str) -> Fields:
    if files.first is None:
        return {} if "source.input" in given else _of_files(files, model)
    rows, chosen = files.first.rows, Fields()
    if not any(name.split(".")[1] in _INPUTS for name in given if name.startswith("source.")):
        if files.first.doubt:
            raise JobError(f"{files.store.url('')}: {files.first.doubt}")
        facts = _facts(model, next(iter(inputs_in(rows)), ""))
        names = tuple(column.name for column in facts.columns) if facts else ()
        chosen = choose_columns(
            rows,
            facts.input if facts else "image" if "name" in model else None,
            names,
            is_pair=facts is not None and facts.input == "text" and facts.tasks[:1] == (_PAIRS,),
            num_features=facts.num_features if facts else None,
            command=asking,
        )
    if "source.id_column" not in given:
        chosen |= choose_id(rows)
    return chosen


def _of_files(input_files: InputFiles, model: Fields) -> Fields:
    """Return what a job says of rows that are files.

    Raises:
        JobError: The model takes something else.
    """
    facts, form = _facts(model, "image"), load(SOURCES, input_files.format)
    takes = facts.input if facts else form.holds
    if takes == "audio" and form.counts_rows == "reading":
        return {"input": ("audio", "the model hears clips of sound")}
    if takes != form.holds:
        what = get(INPUTS, takes).how_to_name.partition(":")[0]
        files = num_of(len(input_files.shards), "file")
        raise JobError(
            f"the model {what}, and {input_files.source.uri} is {files} of {input_files.format}"
        )
    return {}


def _facts(model: Fields, side: str) -> DirectoryFacts | None:
    """Return what a model directory or an .onnx file says; None of models that are named.

    Args:
        model: The field that names it.
        side: What the columns hold, for a model of images and texts.
    """
    return open_facts(model["path"][0], {}, side)[1] if "path" in model else None


def _input(files: InputFiles, job: Job, why: Fields) -> tuple[str, ...]:
    """Say in a line each what the input is, which columns are left out, which rows cannot be read.

    Args:
        why: The fields of `source`, each with the reason for its value.
    """
    source = job.source
    what = f"input: {num_of(len(files.shards), 'file')} of format {files.format}"
    if load(SOURCES, files.format).counts_rows == "listing":
        return (f"{what}; a file is a row, its path is the id",)
    row = source.id_column or "the shard and the row's number"
    if files.first is None:
        return (f"{what}; {source.input_name} of {source.encoded.what}; the id is {row}",)
    names, rows = source.input_columns.names, files.first.rows
    others = [reason for _, reason in why.values() if reason.startswith(_OTHERS)]
    shown = "; ".join([", ".join(names), *others])
    used = {*names, *source.passed.values(), source.id_column}
    left = [name for name in rows.column_names if name not in used]
    lines = [f"{what}; {source.input_name} of {shown}; the id is {row}"]
    if left:
        lines.append(f"left out: {names_of(described(rows, left))}")
    if files.first.trouble:
        lines.append(f"cannot be read: {files.first.trouble}")
    return tuple(printable(line)[:300] for line in lines)


def _text(lines: Lines) -> str:
    """Return the job file."""
    written = [
        MARK,
        "# `pipeline schema job`. `pipeline plan` says what a run of this would do.",
    ]
    for section, fields in lines.items():
        written += ["", f"{section}:"]
        for field, (value, why) in fields.items():
            comment = f"  # {printable(why)[:80]}" if why else ""
            dumped = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
            line = dumped.removesuffix("...\n").strip()
            written.append(f"  {field}: {line}{comment}")
    return "\n".join(written) + "\n"
