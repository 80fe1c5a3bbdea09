"""Vocabularies of feature columns: read from files, or made of the column's values.

They travel in the metadata of the field `FEATURES`, so that all that reads rows, also a resumed or
retried run, has those that the run was planned with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa

from pipeline.core.errors import JobError
from pipeline.core.schema import FEATURES
from pipeline.job.features import FeatureColumn, FeatureEntry
from pipeline.sources.feature_categories import distinct
from pipeline.storage.create_once import CreateOutcome
from pipeline.storage.single_file import read_file, split_name
from pipeline.storage.store import Store

VOCABULARIES = b"vocabularies"
"""Key in metadata: a JSON list with an entry per feature, null or the categories in order."""
Categories = tuple[str, ...]
Learn = Callable[[str], Iterable[pa.Array]]
"""Column -> its values in all shards, piece by piece."""


def find_vocabularies(
    features: Sequence[FeatureEntry], storage_options: Mapping[str, Any], learn: Learn
) -> dict[bytes, bytes]:
    """Read the vocabularies that a job names by URI, or make them; return them as metadata.

    Args:
        features: The job's.
        storage_options: Of the job's source, for the files.
        learn: Reads a column from its beginning to its end.

    Raises:
        JobError: A file is no list of values, or a column has too many different ones.
    """
    _check_apart(features)
    found = [_vocabulary(each, storage_options, learn) for each in features]
    return {VOCABULARIES: json.dumps(found).encode()} if any(found) else {}


def categories_of(features: Sequence[FeatureEntry], schema: pa.Schema) -> list[Categories | None]:
    """Return the categories of each feature, None of one that has none.

    Args:
        features: The job's.
        schema: With the metadata of `find_vocabularies`, itself or of its field `FEATURES`.
    """
    metadata: Mapping[bytes, bytes] = schema.metadata or {}
    if VOCABULARIES not in metadata and FEATURES in schema.names:
        metadata = schema.field(FEATURES).metadata or {}
    told = _parsed(metadata.get(VOCABULARIES, b""), len(features))
    inline = [each.categories if isinstance(each, FeatureColumn) else None for each in features]
    return [
        mine if isinstance(mine, tuple) else its for mine, its in zip(inline, told, strict=True)
    ]


def vocabularies_digest(fields: pa.Schema) -> str:
    """Return a digest of the vocabularies that the columns of the input carry; '' without any."""
    told = [(field.metadata or {}).get(VOCABULARIES) for field in fields]
    some = b"\n".join(each for each in told if each is not None)
    return hashlib.sha256(some).hexdigest() if some else ""


def keep_vocabularies(
    features: Sequence[FeatureEntry], storage_options: Mapping[str, Any], fields: pa.Schema
) -> None:
    """Write the vocabularies that were made of this input; those that are there stay.

    Raises:
        JobError: Another run has written other values meanwhile.
    """
    for entry, categories in zip(features, categories_of(features, fields), strict=True):
        if not isinstance(entry, FeatureColumn) or entry.vocabulary is None or not categories:
            continue
        if _read(entry.vocabulary, storage_options, entry.column) == categories:
            continue
        folder, name = split_name(entry.vocabulary)
        text = json.dumps(categories, indent=1, ensure_ascii=False) + "\n"
        outcome = Store(folder, storage_options).create_once(name, text.encode(), text)
        if outcome is CreateOutcome.OTHER:
            raise JobError(
                f"source.features: {entry.vocabulary} was written meanwhile, with other values of "
                f"{entry.column} than this input has; run again to take them"
            )


def _vocabulary(
    entry: FeatureEntry, storage_options: Mapping[str, Any], learn: Learn
) -> Categories | None:
    if not isinstance(entry, FeatureColumn):
        return None
    if isinstance(entry.categories, str):
        found = _read(entry.categories, storage_options, entry.column)
        if found is None:
            raise JobError(
                f"source.features: {entry.column}: categories = {entry.categories}: no such file"
            )
        return found
    if entry.vocabulary is None:
        return None
    return _read(entry.vocabulary, storage_options, entry.column) or _made(entry, learn)


def _made(entry: FeatureColumn, learn: Learn) -> Categories:
    values: set[str | None] = set()
    for column in learn(entry.column):
        values |= distinct(column)
        if len(values) > entry.max_categories:
            raise JobError(
                f"source.features: {entry.column} has more than {entry.max_categories} different "
                "values; raise max_categories, or write the file of its vocabulary yourself"
            )
    if not values:
        raise JobError(
            f"source.features: {entry.column} has no value in this input to make its vocabulary "
            f"{entry.vocabulary} of; write that file yourself"
        )
    found = [value for value in values if value is not None]
    return tuple(sorted(found, key=_in_order))


def _in_order(value: str) -> tuple[int, int, str]:
    """Sort whole numbers by size, before all other values, which are sorted by their characters."""
    is_whole = value.removeprefix("-").isdecimal() and value.isascii()
    return (0, int(value), value) if is_whole else (1, 0, value)


def _read(uri: str, storage_options: Mapping[str, Any], column: str) -> Categories | None:
    """Read a list of values, as JSON or one a line; None if there is no such file."""
    where = f"source.features: {column}: {uri}"
    folder, name = split_name(uri)
    if Store(folder, storage_options).stat(name) is None:
        return None
    data = read_file(uri, storage_options, f"source.features: {column}: categories")
    try:
        text = data.decode("utf-8-sig")
        is_json = text.lstrip().startswith("[")
        values = json.loads(text) if is_json else text.splitlines()
    except ValueError as error:
        raise JobError(f"{where}: no list of values: {error}") from None
    found = [_as_category(value, where) for value in values if value != ""]
    if not found:
        raise JobError(f"{where}: holds no values")
    if len(set(found)) < len(found):
        doubled = next(value for value in found if found.count(value) > 1)
        raise JobError(f"{where}: {doubled!r} is there twice")
    return tuple(found)


def _as_category(value: Any, where: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | str):
        return str(value)
    raise JobError(f"{where}: {value!r:.40} is neither text nor a whole number")


def _check_apart(features: Sequence[FeatureEntry]) -> None:
    """Refuse one vocabulary of two columns, which would be made of the first one's values."""
    seen: dict[str, str] = {}
    for entry in features:
        if not isinstance(entry, FeatureColumn) or entry.vocabulary is None:
            continue
        other = seen.setdefault(entry.vocabulary, entry.column)
        if other != entry.column:
            raise JobError(
                f"source.features: {other} and {entry.column} have one vocabulary, "
                f"{entry.vocabulary}; give each its own, or name it as categories"
            )


@lru_cache(maxsize=16)
def _parsed(told: bytes, size: int) -> tuple[Categories | None, ...]:
    lists = json.loads(told) if told else [None] * size
    return tuple(None if each is None else tuple(each) for each in lists)
