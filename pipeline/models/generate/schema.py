"""JSON schemas of records: a closed subset, read strictly and within limits.

Keywords mean what they mean in JSON Schema 2020-12. A keyword outside of the subset is refused with
its place, so that no part of a schema is silently ignored; only annotations such as titles and
descriptions are dropped. Two defaults differ: an object never has additional properties, and an
integer has at most 53 bits, which all readers of JSON keep.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from pipeline.core.printable import clean_message
from pipeline.core.schema import GENERATE_FIELDS

Schema = dict[str, Any]
"""The canonical schema of one value."""
NULL = {"type": "null"}
_BOUNDS: Mapping[str, tuple[str, str]] = {
    "string": ("minLength", "maxLength"),
    "integer": ("minimum", "maximum"),
    "number": ("minimum", "maximum"),
    "array": ("minItems", "maxItems"),
}
"""Type -> the keywords of its minimum and maximum."""
MAX_CHARS = 1 << 16
"""Characters of a schema as JSON."""
MAX_DEPTH, MAX_NODES, MAX_VALUES = 8, 256, 1_024
"""Nested values; values in a schema, with references counted at each use; values of all enums."""
MAX_LENGTH, MAX_ITEMS = 8_192, 1_024
"""The sum of the maximum lengths of all strings, and of the maximum items of all arrays."""
_MAX_REFS = 32
MAX_NUMBER, _MAX_DECIMALS = (1 << 53) - 1, 9
_ANNOTATIONS = frozenset(
    ("$comment", "$id", "$schema", "default", "deprecated", "description", "examples", "title")
)
_DEFINITIONS = ("$defs", "definitions")
_REF = re.compile(r"#/(\$defs|definitions)/([^/~%]+)")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "string": ("enum", "const", *_BOUNDS["string"]),
    "integer": ("const", *_BOUNDS["integer"]),
    "number": ("const", *_BOUNDS["number"]),
    "boolean": ("const",),
    "array": ("items", *_BOUNDS["array"]),
    "object": ("properties", "required", "additionalProperties"),
}
"""Type -> its keywords, besides `type`."""
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number"}
_SHOWN_CHARS = 60


class SchemaError(ValueError):
    """The schema is outside of the subset; the message names the place."""


def canonical(given: Any) -> str:
    """Return the canonical form of a schema, as JSON.

    Args:
        given: The schema of an object whose properties are columns, as JSON values.

    Raises:
        SchemaError: It is outside of the subset.
    """
    _require_short(given)
    schema = _Reader(given).root()
    _require_short(schema)  # references may expand to much more
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


def without_null(schema: Schema) -> Schema:
    """Return a canonical schema without the alternative null."""
    plain: Schema = schema["anyOf"][0] if "anyOf" in schema else schema
    return plain


def values_of(schema: Schema) -> Sequence[Any]:
    """Return the values of an enum or const; () if there is none."""
    only: Sequence[Any] = schema.get("enum", [schema["const"]] if "const" in schema else ())
    return only


def all_schemas(schema: Schema) -> Iterator[Schema]:
    """Yield the canonical schemas of a value and of all values in it, without null."""
    plain = without_null(schema)
    yield plain
    inner = [plain["items"]] if "items" in plain else plain.get("properties", {}).values()
    for value in inner:
        yield from all_schemas(value)


class _Reader:
    """Reads one schema, and counts its parts against the limits."""

    def __init__(self, given: Any) -> None:
        self._given = given
        self._num_nodes = self._num_values = self._length = self._num_items = 0
        self._definitions: dict[tuple[str, ...], Any] = {}

    def root(self) -> Schema:
        given = self._given
        if not isinstance(given, dict):
            raise SchemaError("expected a mapping, the JSON schema of an object")
        for section in _DEFINITIONS:
            named = given.get(section, {})
            if not isinstance(named, dict):
                _refuse(section, "expected a mapping")
            self._definitions |= {(section, name): definition for name, definition in named.items()}
        plain = {key: value for key, value in given.items() if key not in _DEFINITIONS}
        schema = self._value(plain, "", ())
        if schema.get("type") != "object":
            raise SchemaError("a record is of type object, whose properties become columns")
        taken = {field.name for field in GENERATE_FIELDS}
        for name in schema["properties"]:
            if name.lower() in taken:
                _refuse(f"properties.{name}", "is a column of task 'generate'; rename the property")
        return schema

    def _value(self, given: Any, place: str, refs: tuple[str, ...], depth: int = 0) -> Schema:
        """Read the schema of one value.

        Args:
            place: Path of the value in the schema.
            refs: The references that lead here; '' stands for an anyOf.
            depth: The number of values around it.
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
        name, is_nullable = _type_of(asked, place)
        schema: Schema = {"type": name}
        if "enum" in asked or "const" in asked:
            schema |= self._values(name, asked, place, is_nullable=is_nullable)
        elif name in _BOUNDS:
            schema |= self._bounds(name, asked, place)
        if name == "array":
            if "items" not in asked:
                _refuse(place, "an array needs items, the schema of its values")
            schema["items"] = self._value(asked["items"], _join(place, "items"), refs, depth + 1)
        if name == "object":
            schema |= self._object(asked, place, refs, depth)
        return _with_null(schema) if is_nullable else schema

    def _count(self, place: str, depth: int) -> None:
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES:
            _refuse(place, f"the schema has more than {MAX_NODES} values")
        if depth > MAX_DEPTH:
            _refuse(place, f"the value is nested more than {MAX_DEPTH} levels deep")

    def _referred(self, asked: Any, place: str, refs: tuple[str, ...], depth: int) -> Schema:
        target = asked["$ref"]
        match = _REF.fullmatch(target) if isinstance(target, str) else None
        if match is None or match.groups() not in self._definitions:
            _refuse(place, f"$ref {_shown(target)} names no definition of this schema")
        if len(asked) > 1:
            _refuse(place, "$ref allows no other keywords")
        if target in refs:
            _refuse(place, f"$ref {_shown(target)} refers to itself; records cannot be recursive")
        return self._value(self._definitions[match.groups()], place, (*refs, target), depth)

    def _or_null(self, asked: Any, place: str, refs: tuple[str, ...], depth: int) -> Schema:
        options = asked["anyOf"]
        others = [item for item in options if item != NULL] if isinstance(options, list) else []
        if len(asked) > 1 or len(others) != 1 or len(options) != 2:
            _refuse(place, "anyOf supports only one schema and {type: 'null'}")
        return _with_null(self._value(others[0], place, (*refs, ""), depth))

    def _values(
        self, name: str, asked: Mapping[str, Any], place: str, *, is_nullable: bool
    ) -> Schema:
        """Return the keyword `enum` or `const`."""
        if len(asked) > 1 + ("type" in asked):
            _refuse(place, "enum and const allow no other keywords")
        values = asked["enum"] if "enum" in asked else [asked["const"]]
        kept = [value for value in values if value is not None] if isinstance(values, list) else []
        if not kept:
            _refuse(place, "enum: expected a list of values")
        if is_nullable != _has_null(asked):
            _refuse(place, "null must be both in type and in enum, or in neither")
        for value in kept:
            if _TYPES.get(type(value)) not in (name, *["integer"] * (name == "number")):
                _refuse(place, f"{_shown(value)} is not of type {name}")
            if name in ("integer", "number"):
                _require_number(value, name, place)
            elif isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
                _refuse(place, f"{_shown(value)} is not valid Unicode")
        self._num_values += len(kept)
        if self._num_values > MAX_VALUES:
            _refuse(place, f"all enums together may have {MAX_VALUES:,} values")
        only = [*dict.fromkeys(map(float, kept) if name == "number" else kept)]
        return {"enum": only} if len(only) > 1 else {"const": only[0]}

    def _bounds(self, name: str, asked: Mapping[str, Any], place: str) -> Schema:
        """Return the keywords of the minimum and maximum."""
        names = _BOUNDS[name]
        for bound in names:
            if bound in asked and name in ("integer", "number"):
                _require_number(asked[bound], name, _join(place, bound))
            elif bound in asked and (type(asked[bound]) is not int or asked[bound] < 0):
                _refuse(place, f"{bound} is {_shown(asked[bound])}, expected an integer >= 0")
        least, most = (asked.get(bound) for bound in names)
        if least is not None and most is not None and least > most:
            _refuse(place, f"{names[0]} {least} is above {names[1]} {most}")
        if name == "integer":
            least = -MAX_NUMBER if least is None else int(least)
            most = MAX_NUMBER if most is None else int(most)
        elif name == "number":
            least, most = (None if limit is None else float(limit) for limit in (least, most))
        else:
            size = (least or 0) if most is None else most
            self._length += size * (name == "string")
            self._num_items += size * (name == "array")
        if self._length > MAX_LENGTH or self._num_items > MAX_ITEMS:
            _refuse(
                place,
                f"{' and '.join(names)} of a schema may be {MAX_LENGTH:,} characters and "
                f"{MAX_ITEMS:,} items together",
            )
        pairs = zip(names, (least, most), strict=True)
        return {bound: value for bound, value in pairs if value is not None}

    def _object(
        self, asked: Mapping[str, Any], place: str, refs: tuple[str, ...], depth: int
    ) -> Schema:
        properties, required = asked.get("properties"), asked.get("required", [])
        if asked.get("additionalProperties", False) is not False:
            _refuse(place, "additionalProperties must be false")
        if not isinstance(properties, dict) or not properties:
            _refuse(place, "an object needs properties, the schemas of its values by name")
        seen: dict[str, str] = {}
        for name in properties:
            if not _NAME.fullmatch(name):
                rule = "is not a column name: a letter, then at most 63 ASCII letters, digits and _"
                _refuse(place, f"property {_shown(name)} {rule}")
            if (other := seen.setdefault(name.lower(), name)) != name:
                _refuse(place, f"properties {other!r} and {name!r} are one column to many readers")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            _refuse(place, "required: expected a list of names")
        for name in required:
            if name not in properties:
                _refuse(place, f"required: {_shown(name)} is not one of the properties")
        schemas = {
            name: self._value(schema, _join(place, f"properties.{name}"), refs, depth + 1)
            for name, schema in properties.items()
        }
        return {
            "properties": schemas,
            "required": [name for name in schemas if name in required],
            "additionalProperties": False,
        }


def _require_short(schema: Any) -> None:
    try:
        num_chars = len(json.dumps(schema, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError):
        raise SchemaError("is not JSON, or is nested too deep") from None
    if num_chars > MAX_CHARS:
        raise SchemaError(f"has {num_chars:,} characters, at most {MAX_CHARS:,} are allowed")


def _with_null(schema: Schema) -> Schema:
    return schema if "anyOf" in schema else {"anyOf": [schema, NULL]}


def _type_of(asked: Mapping[str, Any], place: str) -> tuple[str, bool]:
    """Return the type of a value and whether it may be null; refuse keywords of other types."""
    given = asked.get("type", [])
    types = given if isinstance(given, list) else [given]
    if "type" not in asked and ("enum" in asked or "const" in asked):
        type_name = _TYPES.get(type(asked.get("const", "")))
        types = [type_name, *(["null"] if _has_null(asked) else [])]
    if not types and asked:
        first = _shown(next(iter(asked)))
        _refuse(place, f"{first} is not supported; a value has a type, an enum or a const")
    names = [name for name in types if name != "null"]
    if len(names) != 1 or len(types) > 2 or not _KEYWORDS.keys() & {str(name) for name in names}:
        hint = "; write null in quotes there" if None in types else ""
        expected = f"expected one of {', '.join(_KEYWORDS)}, optionally with 'null'{hint}"
        _refuse(place, f"type is {_shown(given)}, {expected}")
    for keyword in asked:
        if keyword != "type" and keyword not in _KEYWORDS[names[0]]:
            problem = f"is not supported; {names[0]} may have {', '.join(_KEYWORDS[names[0]])}"
            _refuse(place, f"{_shown(keyword)} {problem}")
    return names[0], len(types) == 2


def _require_number(value: Any, name: str, place: str) -> None:
    is_number = type(value) in (int, float) and abs(value) <= MAX_NUMBER  # NaN is not
    if not is_number or round(value, _MAX_DECIMALS) != value:
        expected = f"expected a number of at most 53 bits and {_MAX_DECIMALS} decimals"
        _refuse(place, f"{_shown(value)}: {expected}")
    if name == "integer" and value != int(value):
        _refuse(place, f"{_shown(value)} is not an integer")


def _has_null(asked: Mapping[str, Any]) -> bool:
    values: Sequence[Any] = asked["enum"] if isinstance(asked.get("enum"), list) else []
    return None in values


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _refuse(place: str, problem: str) -> NoReturn:
    raise SchemaError(f"{clean_message(place, 200)}: {problem}" if place else problem)


def _shown(value: Any) -> str:
    return clean_message(json.dumps(value, default=str), _SHOWN_CHARS)
