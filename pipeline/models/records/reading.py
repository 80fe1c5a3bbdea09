"""Read the record that a text holds, and accept it only if the schema does, value by value."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

import pyarrow as pa

from pipeline.core.printable import clean_message
from pipeline.core.schema import LABEL, SCORE
from pipeline.models.records.node import Kind, Node

_ARROW = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
}
_TYPES: dict[Kind, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}
_SHOWN_CHARS = 60


def fields_of(record: Node | None) -> list[pa.Field]:
    """Return the columns of a record, one per property; None: texts are no records."""
    if record is None:
        return []
    return [pa.field(name, _type_of(node)) for name, node in record.fields]


def measured_of(record: Node) -> list[str]:
    """Return the columns of a record with numbers, true and false, or texts of an enum."""
    named = dict(record.fields)
    if LABEL in named:
        named.pop(SCORE, None)  # beside a label it would count as a probability
    kinds = ("integer", "number", "boolean")
    return [name for name, node in named.items() if node.kind in kinds or node.values]


def columns_of(record: Node | None, texts: Sequence[str | None]) -> dict[str, pa.Array]:
    """Return the columns of the records of texts, (N,); None: all are null.

    Raises:
        ValueError: A text is no record.
    """
    if record is None:
        return {}
    rows = [None if text is None else read_record(record, text) for text in texts]
    return {
        field.name: pa.array([row and row[field.name] for row in rows], field.type)
        for field in fields_of(record)
    }


def read_record(record: Node, text: str) -> dict[str, Any]:
    """Return the record of a text, with None for what is null or not there.

    Raises:
        ValueError: The text is no JSON, or the schema does not allow what it says; names the place.
    """
    try:
        found = json.loads(text, parse_constant=_no_number, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"is no JSON: {clean_message(str(error), 200)}") from None
    checked: dict[str, Any] = _checked(record, found, "")
    return checked


def _type_of(node: Node) -> pa.DataType:
    if node.items is not None:
        return pa.list_(_type_of(node.items))
    return pa.struct(fields_of(node)) if node.kind == "object" else _ARROW[node.kind]


def _checked(node: Node, value: Any, place: str) -> Any:
    """Return a value as its column holds it."""
    if value is None and node.is_nullable:
        return None
    if type(value) not in _TYPES[node.kind]:
        _refuse(place, f"{_shown(value)} is no {node.kind}")
    if node.values and value not in node.values:
        _refuse(place, f"{_shown(value)} is none of its values")
    _require_within(node, len(value) if isinstance(value, str | list) else value, place)
    if node.items is not None:
        return [_checked(node.items, each, f"{place}[{n}]") for n, each in enumerate(value)]
    if node.kind == "object":
        return _checked_object(node, value, place)
    if isinstance(value, str):
        value.encode()  # a surrogate alone is no text
    return _finite(value, place) if node.kind == "number" else value


def _require_within(node: Node, size: Any, place: str) -> None:
    is_low = node.least is not None and size < node.least
    if is_low or (node.most is not None and size > node.most):
        _refuse(place, f"{_shown(size)} is out of bounds")


def _checked_object(node: Node, value: dict[str, Any], place: str) -> dict[str, Any]:
    named = dict(node.fields)
    for name in value:
        if name not in named:
            _refuse(place, f"{_shown(name)} is none of its properties")
    for name in node.required:
        if name not in value:
            _refuse(place, f"{name} is missing")
    return {
        name: _checked(each, value[name], f"{place}.{name}".lstrip(".")) if name in value else None
        for name, each in node.fields
    }


def _finite(value: float, place: str) -> float:
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        _refuse(place, "the number is beyond float64")
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a property is there twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _refuse(place: str, problem: str) -> NoReturn:
    raise ValueError(f"{place}: {problem}" if place else problem)


def _shown(value: Any) -> str:
    return clean_message(json.dumps(value), _SHOWN_CHARS)
