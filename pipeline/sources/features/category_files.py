"""Files that list the categories of a feature column, as the training code wrote them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.core.errors import JobError
from pipeline.job.features import FeatureColumn, FeatureEntry
from pipeline.job.source import Source
from pipeline.storage.single_file import read_file


def with_categories(source: Source) -> Source:
    """Return a job's section with the lists that its features name by URI in place of the URIs.

    Raises:
        JobError: A file is not there, or holds no list of different values.
    """
    if features := _read_all(source.features, source.storage_options):
        source = source.model_copy(update={"features": features})
    found = {
        name: part.model_copy(update={"features": features})
        for name, part in source.inputs.items()
        if (features := _read_all(part.features, source.storage_options))
    }
    return source.model_copy(update={"inputs": {**source.inputs, **found}}) if found else source


def _read_all(
    features: Sequence[FeatureEntry], storage_options: Mapping[str, Any]
) -> tuple[FeatureEntry, ...]:
    """Return the entries with their lists; () if none of them names a file."""
    found = tuple(
        each.model_copy(update={"categories": _read(each.categories, storage_options, each.column)})
        if isinstance(each, FeatureColumn) and isinstance(each.categories, str)
        else each
        for each in features
    )
    return () if found == tuple(features) else found


def _read(uri: str, storage_options: Mapping[str, Any], column: str) -> tuple[str, ...]:
    """Read a list of values, as JSON or one a line; an empty text is a value, too."""
    what = f"source.features: {column}: categories"
    data = read_file(uri, storage_options, what)
    where = f"{what} = {uri}"
    try:
        text = data.decode("utf-8-sig")
        values = json.loads(text) if text.lstrip().startswith("[") else _lines(text)
    except ValueError as error:
        raise JobError(f"{where}: no list of values: {error}") from None
    found = [_as_category(value, where) for value in values]
    if not found:
        raise JobError(f"{where}: holds no values")
    if len(set(found)) < len(found):
        doubled = next(value for value in found if found.count(value) > 1)
        raise JobError(f"{where}: {doubled!r:.40} is there twice")
    return tuple(found)


def _lines(text: str) -> list[str]:
    """Return the lines of a text, which \\n or \\r\\n ends; the last one may have no end."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _as_category(value: Any, where: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | str):
        return str(value)
    raise JobError(f"{where}: {json.dumps(value):.40} is neither text nor a whole number")
