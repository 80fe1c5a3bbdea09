"""JSON schemas of records: a closed subset, read strictly and within limits.

Keywords have the meaning of JSON Schema 2020-12. What is not in the subset is refused with its
place, so that nothing of a schema is without effect; titles, descriptions and their like say
nothing of values and are left out. Two defaults differ: an object has no other properties, also
if it does not say so, and an integer has at most 53 bits, which all readers of JSON keep.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NoReturn

from pipeline.core.printable import clean_message
from pipeline.core.schema import GENERATE_FIELDS
from pipeline.models.records.node import BOUNDS, NULL, Kind, Node

MAX_CHARS = 1 << 16
"""Of a schema, as JSON."""
MAX_DEPTH, MAX_NODES, MAX_VALUES = 8, 256, 1_024
"""Values inside of each other; values that a schema names, what references stand for counted each
time; values of all of its enums."""
MAX_LENGTH, MAX_ITEMS = 8_192, 1_024
"""Characters and items that a schema counts, over all of its strings and arrays."""
_MAX_REFS = 32
MAX_NUMBER, _MAX_DECIMALS = (1 << 53) - 1, 9
_ANNOTATIONS = frozenset(
    ("$comment", "$id", "$schema", "default", "deprecated", "description", "examples", "title")
)
_DEFINITIONS = ("$defs", "definitions")
_REF = re.compile(r"#/(\$defs|definitions)/([^/~%]+)")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "string": ("enum", "const", *BOUNDS["string"]),
    "integer": ("const", *BOUNDS["integer"]),
    "number": ("const", *BOUNDS["number"]),
    "boolean": ("const",),
    "array": ("items", *BOUNDS["array"]),
    "object": ("properties", "required", "additionalProperties"),
}
"""Kind -> its keywords beside `type`."""
_KINDS = {str: "string", bool: "boolean", int: "integer", float: "number"}
_SHOWN_CHARS = 60


class SchemaError(ValueError):
    """A schema is not in the subset; the message names the place."""


def canonical(given: Any) -> str:
    """Return the canonical form of a schema, as JSON.

    Args:
        given: The schema of an object whose properties are columns, as JSON values.

    Raises:
        SchemaError: It is not in the subset.
    """
    _require_short(given)
    schema = _Reader(given).root().schema()
    _require_short(schema)  # references may stand for much more
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


@lru_cache(maxsize=8)
def record_of(schema: str) -> Node:
    """Return the record that a canonical schema allows."""
    return _Reader(json.loads(schema)).root()


class _Reader:
    """Reads one schema, and counts what it has read."""

    def __init__(self, given: Any) -> None:
        self._given = given
        self._num_nodes = self._num_values = self._length = self._num_items = 0
        self._definitions: dict[tuple[str, ...], Any] = {}

    def root(self) -> Node:
        given = self._given
        if not isinstance(given, dict):
            raise SchemaError("expected a mapping, the JSON schema of an object")
        for section in _DEFINITIONS:
            named = given.get(section, {})
            if not isinstance(named, dict):
                _refuse(section, "expected a mapping")
            self._definitions |= {(section, name): each for name, each in named.items()}
        plain = {key: value for key, value in given.items() if key not in _DEFINITIONS}
        found = self._node(plain, "", ())
        if found.kind != "object" or found.is_nullable:
            raise SchemaError("a record is of type object, whose properties become columns")
        taken = {field.name for field in GENERATE_FIELDS}
        for name, _ in found.fields:
            if name.lower() in taken:
                _refuse(f"properties.{name}", "is a column of task 'generate'; name it otherwise")
        return found

    def _node(self, given: Any, place: str, refs: tuple[str, ...], depth: int = 0) -> Node:
        """Read the schema of one value.

        Args:
            given: The schema.
            place: Where it stands.
            refs: The references by which it was reached; '' stands for an anyOf.
            depth: In how many others it stands.
        """
        if not isinstance(given, dict):
            _refuse(place, "expected a mapping, the schema of a value")
        if len(refs) > _MAX_REFS:
            _refuse(place, f"more than {_MAX_REFS} of $ref and anyOf lead here")
        asked = {key: value for key, value in given.items() if key not in _ANNOTATIONS}
        if "$ref" in asked:
            return self._referred(asked, place, refs, depth)
        if "anyOf" in asked:
            return self._or_null(asked, place, refs, depth)
        self._count(place, depth)
        node = _typed(asked, place)
        if "enum" in asked or "const" in asked:
            return self._with_values(node, asked, place)
        if node.kind in BOUNDS:
            node = self._with_bounds(node, asked, place)
        if node.kind == "array":
            if "items" not in asked:
                _refuse(place, "an array needs items, the schema of its values")
            inner = self._node(asked["items"], _join(place, "items"), refs, depth + 1)
            return replace(node, items=inner)
        return self._object(node, asked, place, refs, depth) if node.kind == "object" else node

    def _count(self, place: str, depth: int) -> None:
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES:
            _refuse(place, f"a schema may name {MAX_NODES} values, and this is one more")
        if depth > MAX_DEPTH:
            _refuse(place, f"a value may be inside of {MAX_DEPTH} others, and this is in one more")

    def _referred(self, asked: Any, place: str, refs: tuple[str, ...], depth: int) -> Node:
        target = asked["$ref"]
        found = _REF.fullmatch(target) if isinstance(target, str) else None
        if found is None or found.groups() not in self._definitions:
            _refuse(place, f"$ref {_shown(target)} names no definition of this schema")
        if len(asked) > 1:
            _refuse(place, "$ref may have no other keyword beside it")
        if target in refs:
            _refuse(place, f"$ref {_shown(target)} stands in itself; records have no recursion")
        return self._node(self._definitions[found.groups()], place, (*refs, target), depth)

    def _or_null(self, asked: Any, place: str, refs: tuple[str, ...], depth: int) -> Node:
        options = asked["anyOf"]
        others = [each for each in options if each != NULL] if isinstance(options, list) else []
        if len(asked) > 1 or len(others) != 1 or len(options) != 2:
            _refuse(place, "anyOf is done for one schema and {type: 'null'} alone")
        return replace(self._node(others[0], place, (*refs, ""), depth), is_nullable=True)

    def _with_values(self, node: Node, asked: Mapping[str, Any], place: str) -> Node:
        """Return a node with the only values that it may have."""
        if len(asked) > 1 + ("type" in asked):
            _refuse(place, "enum and const say all of a value; leave other keywords out")
        values = asked["enum"] if "enum" in asked else [asked["const"]]
        kept = [value for value in values if value is not None] if isinstance(values, list) else []
        if not kept:
            _refuse(place, "enum: expected a list of texts")
        if node.is_nullable != _has_null(asked):
            _refuse(place, "null must be both in type and in enum, or in neither")
        for value in kept:
            if _KINDS.get(type(value)) not in (node.kind, *["integer"] * (node.kind == "number")):
                _refuse(place, f"{_shown(value)} is no {node.kind}")
            if node.kind in ("integer", "number"):
                _require_number(value, node.kind, place)
            elif isinstance(value, str) and any("\ud800" <= each <= "\udfff" for each in value):
                _refuse(place, f"{_shown(value)} is no text of Unicode")
        self._num_values += len(kept)
        if self._num_values > MAX_VALUES:
            _refuse(place, f"enums may have {MAX_VALUES:,} values together")
        plain = map(float, kept) if node.kind == "number" else kept
        return replace(node, values=tuple(dict.fromkeys(plain)))

    def _with_bounds(self, node: Node, asked: Mapping[str, Any], place: str) -> Node:
        kind, names = node.kind, BOUNDS[node.kind]
        for name in names:
            if name in asked and kind in ("integer", "number"):
                _require_number(asked[name], kind, _join(place, name))
            elif name in asked and (type(asked[name]) is not int or asked[name] < 0):
                _refuse(place, f"{name} is {_shown(asked[name])}, expected a whole number from 0")
        least, most = (asked.get(name) for name in names)
        if least is not None and most is not None and least > most:
            _refuse(place, f"{names[0]} {least} is above {names[1]} {most}")
        if kind == "integer":
            least = -MAX_NUMBER if least is None else int(least)
            most = MAX_NUMBER if most is None else int(most)
        elif kind == "number":
            least, most = (None if each is None else float(each) for each in (least, most))
        else:
            size = (least or 0) if most is None else most
            self._length += size * (kind == "string")
            self._num_items += size * (kind == "array")
        if self._length > MAX_LENGTH or self._num_items > MAX_ITEMS:
            _refuse(
                place,
                f"{' and '.join(names)} of a schema may be {MAX_LENGTH:,} characters and "
                f"{MAX_ITEMS:,} items together",
            )
        return replace(node, least=least, most=most)

    def _object(
        self, node: Node, asked: Mapping[str, Any], place: str, refs: tuple[str, ...], depth: int
    ) -> Node:
        properties, required = asked.get("properties"), asked.get("required", [])
        if asked.get("additionalProperties", False) is not False:
            _refuse(place, "additionalProperties: records have no others; give false")
        if not isinstance(properties, dict) or not properties:
            _refuse(place, "an object needs properties, the schemas of its values by name")
        seen: dict[str, str] = {}
        for name in properties:
            if not _NAME.fullmatch(name):
                told = "is no name of a column: a letter, then ASCII letters, digits and _, 64 most"
                _refuse(place, f"property {_shown(name)} {told}")
            if (other := seen.setdefault(name.lower(), name)) != name:
                _refuse(place, f"properties {other!r} and {name!r} are one column to many readers")
        if not isinstance(required, list) or not all(isinstance(each, str) for each in required):
            _refuse(place, "required: expected a list of names")
        for name in required:
            if name not in properties:
                _refuse(place, f"required: {_shown(name)} is none of the properties")
        fields = [
            (name, self._node(each, _join(place, f"properties.{name}"), refs, depth + 1))
            for name, each in properties.items()
        ]
        return replace(node, fields=tuple(fields), required=frozenset(required))


def _require_short(schema: Any) -> None:
    try:
        num_chars = len(json.dumps(schema, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError):
        raise SchemaError("is no JSON, or is nested too deep") from None
    if num_chars > MAX_CHARS:
        raise SchemaError(f"has {num_chars:,} characters, at most {MAX_CHARS:,} are read")


def _typed(asked: Mapping[str, Any], place: str) -> Node:
    """Return a value of which only the type is known; refuse keywords that it cannot have."""
    given = asked.get("type", [])
    types = given if isinstance(given, list) else [given]
    if "type" not in asked and ("enum" in asked or "const" in asked):
        kind = _KINDS.get(type(asked.get("const", "")))
        types = [kind, *(["null"] if _has_null(asked) else [])]
    if not types and asked:
        first = _shown(next(iter(asked)))
        _refuse(place, f"{first} is not done here; a value has a type, an enum or a const")
    kinds = [each for each in types if each != "null"]
    if len(kinds) != 1 or len(types) > 2 or not _KEYWORDS.keys() & {str(each) for each in kinds}:
        hint = "; null is a text in quotes there" if None in types else ""
        expected = f"expected one of {', '.join(_KEYWORDS)}, beside it 'null' at most{hint}"
        _refuse(place, f"type is {_shown(given)}, {expected}")
    for keyword in asked:
        if keyword != "type" and keyword not in _KEYWORDS[kinds[0]]:
            told = f"is not done here; {kinds[0]} may have {', '.join(_KEYWORDS[kinds[0]])}"
            _refuse(place, f"{_shown(keyword)} {told}")
    return Node(kinds[0], len(types) == 2)


def _require_number(value: Any, kind: Kind, place: str) -> None:
    is_number = type(value) in (int, float) and abs(value) <= MAX_NUMBER  # NaN is not
    if not is_number or round(value, _MAX_DECIMALS) != value:
        expected = f"expected a number of at most 53 bits and {_MAX_DECIMALS} decimals"
        _refuse(place, f"{_shown(value)}: {expected}")
    if kind == "integer" and value != int(value):
        _refuse(place, f"{_shown(value)} is no integer")


def _has_null(asked: Mapping[str, Any]) -> bool:
    values: Sequence[Any] = asked["enum"] if isinstance(asked.get("enum"), list) else []
    return None in values


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _refuse(place: str, problem: str) -> NoReturn:
    raise SchemaError(f"{clean_message(place, 200)}: {problem}" if place else problem)


def _shown(value: Any) -> str:
    return clean_message(json.dumps(value, default=str), _SHOWN_CHARS)
