"""What JSON lines hold, as their first ones say: types of columns, lengths of lists of numbers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.core.errors import JobError
from pipeline.core.hive_paths import hive_values
from pipeline.core.schema import FEATURES
from pipeline.job.features import column_of
from pipeline.job.source import Source
from pipeline.sources.columns.arrow_types import parse_type, type_trouble
from pipeline.sources.columns.column_path import value_at
from pipeline.sources.columns.pass_through import check_names
from pipeline.sources.extents import Extent
from pipeline.sources.input_columns import columns_of, fields_of_parts
from pipeline.sources.jsonl.columns import KINDS, described, role_of
from pipeline.sources.jsonl.lines import read_blocks
from pipeline.sources.jsonl.parse import parse_line
from pipeline.sources.jsonl.stream import max_line_bytes
from pipeline.sources.whole_file import open_whole
from pipeline.storage.store import Store, StoredFile

SAMPLE_ROWS = 1000
_SAMPLE_BYTES = 16 * 2**20
_SAMPLE_SHARDS = 16
_INT64 = range(-(2**63), 2**63)
Objects = Sequence[Mapping[str, Any]]


def declare_jsonl(
    store: Store, shards: Sequence[StoredFile], source: Source
) -> tuple[pa.Schema, pa.Schema]:
    """Declare the pass-through columns, and the columns of the input, from the first lines.

    The first shard with a line that is an object counts; one of the first 16.

    Raises:
        JobError: These lines lack a column that the job names, or it holds what it cannot be.
    """
    check_names(source)
    for shard in shards[:_SAMPLE_SHARDS]:
        if objects := _first_objects(store, shard, source):
            sample = _Sample(source, shard.path, objects)
            return sample.pass_through(), sample.fields()
    return pa.schema([]), columns_of(source).fields(None)


def _first_objects(store: Store, shard: StoredFile, source: Source) -> Objects:
    extent = Extent(shard.path, shard.size_bytes, shard.version, 0, 0, 0.0)
    max_bytes = max_line_bytes(source)
    objects: list[Mapping[str, Any]] = []
    with open_whole(store, extent) as handle:
        lines = (
            block.line(row)
            for block in read_blocks(handle, max_bytes)
            for row in range(len(block))
            if block.sizes[row] <= max_bytes
        )
        size_bytes = 0
        for line in itertools.islice(lines, SAMPLE_ROWS):
            value = _parsed(line)
            if isinstance(value, dict):
                objects.append(value)
            size_bytes += len(line)
            if size_bytes > _SAMPLE_BYTES:
                break
    return objects


def _parsed(line: bytes) -> Any:
    try:
        return parse_line(line)
    except ValueError:  # costs its row when it is read
        return None


class _Sample:
    """The first objects of a shard."""

    def __init__(self, source: Source, path: str, objects: Objects) -> None:
        self._source, self._path, self._objects = source, path, objects
        self._names = sorted({name for each in objects for name in each})

    def fields(self) -> pa.Schema:
        """Return the columns of the input; of features with what was found of them.

        Raises:
            JobError: A column is not there, or holds something else.
        """
        if self._source.id_column:
            self._values(self._source.id_column)
        return fields_of_parts(self._source, self._fields_of)

    def _fields_of(self, part: Source) -> pa.Schema:
        kind, names = part.input_columns
        if kind != "features":
            for name in names:
                self._require_text(name)
            return columns_of(part).fields(pa.schema([]))
        return self._features(part)

    def _features(self, part: Source) -> pa.Schema:
        features, columns = part.features, columns_of(part)
        self._require_one_role(part)
        hive = hive_values(self._path)
        kinds, types = [], {}
        for entry in features:
            name, role = column_of(entry), role_of(entry)
            is_here = name not in hive
            if not is_here and (trouble := columns.folder_trouble(name, hive[name])):
                raise self._refused(f"column {name!r} {trouble}")
            if is_here and role == "text":
                self._require_text(name)
            width = self._width(name) if is_here and role == "number" else 0
            kinds.append(self._kind(name) if is_here and role == "category" else None)
            types[name] = pa.list_(pa.float64(), width) if width else pa.float64()
        fields = columns.fields(pa.schema([*types.items()]))
        if not any(kinds):
            return fields
        vector = fields.field(FEATURES)
        told = (vector.metadata or {}) | {KINDS: json.dumps(kinds).encode()}
        of_numbers = vector.with_metadata(told)
        return pa.schema(of_numbers if field.name == FEATURES else field for field in fields)

    def _require_one_role(self, part: Source) -> None:
        roles: dict[str, str] = {}
        for entry in part.features:
            name, role = column_of(entry), role_of(entry)
            if roles.setdefault(name, role) != role:
                raise self._refused(f"column {name!r} is both a number and something else")

    def _kind(self, name: str) -> str:
        """Return what a column of categories mostly holds: `text`, `whole` or `bool`."""
        values = self._values(name)
        fitting = [value for value in values if isinstance(value, str | int)]
        if values and not fitting:
            what = described(values[0])
            raise self._refused(f"column {name!r} holds {what}, expected text, whole numbers")
        kinds = set(_kinds(fitting))
        return kinds.pop() if len(kinds) == 1 else "text"

    def pass_through(self) -> pa.Schema:
        """Return the declared types of the pass-through columns.

        Raises:
            JobError: A column is not there, or cannot be published.
        """
        return pa.schema([(name, self._type(name)) for name in self._source.pass_through])

    def _type(self, name: str) -> pa.DataType:
        if name in self._source.casts:
            kind = parse_type(name, self._source.casts[name])
            if trouble := type_trouble(kind):
                raise JobError(f"source.casts.{name}: {trouble}")
            return kind
        if name in hive_values(self._path):
            return pa.string()
        return type_of(self._values(name, ", or declare its type with source.casts"))

    def _values(self, name: str, hint: str = "") -> list[Any]:
        """Return the values of a column that are not null.

        Raises:
            JobError: No line has it.
        """
        found = [value_at(each, name) for each in self._objects]
        values = [value for value, _ in found if value is not None]
        if not values and name not in self._names:
            why = next((f": {trouble}" for _, trouble in found if trouble), "")
            names = ", ".join(self._names)
            raise self._refused(f"no column {name!r}{why}; there are {names}{hint}")
        return values

    def _require_text(self, name: str) -> None:
        values = self._values(name)
        if values and not any(isinstance(value, str) for value in values):
            raise self._refused(f"column {name!r} holds {described(values[0])}, expected text")

    def _width(self, name: str) -> int:
        """Return the length of a feature's lists; 0 if it is a number."""
        for value in self._values(name):
            if isinstance(value, (int, float)):
                return 0
            if isinstance(value, list) and value and name not in self._source.pass_through:
                return len(value)
            what = "an empty list" if value == [] else described(value)
            hint = " or a list of numbers that is not passed through"
            raise self._refused(f"column {name!r} holds {what}, expected a number{hint}")
        raise self._refused(f"column {name!r} is null, expected numbers")

    def _refused(self, what: str) -> JobError:
        number = len(self._objects)
        return JobError(
            f"source: {self._path} does not fit the job; in its first {number} rows: {what}"
        )


def type_of(values: Sequence[Any]) -> pa.DataType:
    """Return the type of a pass-through column by its first values: text unless all are numbers."""
    kinds = set(_kinds(values))
    if kinds == {"bool"}:
        return pa.bool_()
    if kinds == {"whole"}:
        return pa.int64()
    return pa.float64() if kinds and kinds <= {"whole", "fraction"} else pa.string()


def _kinds(values: Sequence[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, bool):
            yield "bool"
        elif isinstance(value, int):
            yield "whole" if value in _INT64 else "text"
        else:
            yield "fraction" if isinstance(value, float) else "text"
