"""Which fields of a job are places, and which of them mean another place on another machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.job.job import Job
from pipeline.job.reading.yaml_reader import Path, Problem

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
"""Paths or URIs, except lists of `files` (relative to `source.uri`) and of `labels` (names), and a
schema that is given itself."""
_LISTS_OF_PATHS = (("source", "uri_roots"),)


def problems_of_relative_paths(job: Job) -> Iterator[Problem]:
    """Yield every path of a job that depends on the folder in which it runs."""
    for path, text in _named(job):
        if not text.startswith(("/", "${env:")) and "://" not in text:
            field = ".".join(map(str, path))
            yield Problem(
                path,
                f"{field} = {text:.80} is relative; submit runs elsewhere: give an absolute path "
                "or a URI",
            )


def _named(job: Job) -> Iterator[tuple[Path, str]]:
    for index, entry in enumerate(job.source.features):
        if isinstance(text := getattr(entry, "categories", None), str):
            yield ("source", "features", index, "categories"), text
    for field in PATH_FIELDS:
        value: Any = job
        for name in field:
            # Models of pydantic have a method of that name.
            value = getattr(value, "schema_" if name == "schema" else str(name), None)
        if isinstance(value, str):
            yield field, value
        elif value and field in _LISTS_OF_PATHS:
            yield from (((*field, index), item) for index, item in enumerate(value))
