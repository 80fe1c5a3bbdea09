"""What JSON lines hold, as their first ones say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.job.source import Source
from pipeline.sources.jsonl.columns import described
from pipeline.sources.jsonl.parse import parse_line
from pipeline.sources.jsonl.stream import max_json_bytes, read_json_blocks
from pipeline.sources.lines.sample import Sample, first_objects
from pipeline.storage.store import Store, StoredFile

_INT64 = range(-(2**63), 2**63)


def sample_jsonl(store: Store, shards: Sequence[StoredFile], source: Source) -> Sample:
    """Return the first lines of the first shard in which a line is an object."""
    max_bytes = max_json_bytes(source)

    def read(handle: BinaryIO, path: str) -> Iterator[tuple[Mapping[str, Any] | None, int]]:
        for block in read_json_blocks(handle, max_bytes):
            for row in range(len(block)):
                if block.sizes[row] <= max_bytes:
                    line = block.line(row)
                    yield _object(line), len(line)

    return _JsonSample(source, *first_objects(store, shards, read))


def _object(line: bytes) -> Mapping[str, Any] | None:
    try:
        value = parse_line(line)
    except ValueError:  # costs its row when it is read
        return None
    return value if isinstance(value, dict) else None


class _JsonSample(Sample):
    """Objects."""

    def type_of(self, values: Sequence[Any]) -> pa.DataType:
        return type_of(values)

    def text_trouble(self, values: Sequence[Any]) -> str:
        is_text = not values or any(isinstance(value, str) for value in values)
        return "" if is_text else described(values[0])

    def category_of(self, values: Sequence[Any]) -> str:
        fitting = [value for value in values if isinstance(value, str | int)]
        if values and not fitting:
            return ""
        kinds = set(_kinds(fitting))
        return kinds.pop() if len(kinds) == 1 else "text"

    def width_of(self, value: Any) -> int | str:
        if isinstance(value, (int, float)):
            return 0
        if isinstance(value, list):
            return len(value) or "an empty list"
        return described(value)


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
