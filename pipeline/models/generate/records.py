"""Records: read from the text of a model, validated by `jsonschema`, and made into columns."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any, NoReturn

import pyarrow as pa

from pipeline.core.printable import clean_message
from pipeline.core.schema import LABEL, SCORE
from pipeline.models.generate.schema import MAX_NUMBER, Schema, values_of, without_null

_ARROW = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
}
_SHOWN_CHARS = 200


@lru_cache(maxsize=8)
def record_of(schema: str) -> Record:
    """Return the record type of a canonical schema."""
    return Record(json.loads(schema))


class Record:
    """The type of a record: an object whose properties are columns."""

    def __init__(self, schema: Schema) -> None:
        """Take a canonical schema."""
        self._schema = schema

    def fields(self) -> list[pa.Field]:
        """Return the columns, one per property."""
        return [pa.field(name, _arrow_type(schema)) for name, schema in self._properties.items()]

    def measured(self) -> list[str]:
        """Return the columns of numbers, booleans and enums."""
        named = self._properties
        kept = [name for name, schema in named.items() if _is_measured(without_null(schema))]
        # A score beside a label would count as a probability.
        return [name for name in kept if name != SCORE or LABEL not in named]

    def read(self, text: str) -> dict[str, Any]:
        """Return the record of a text.

        Raises:
            ValueError: The text is not JSON, or not valid by the schema; names the place.
        """
        from jsonschema.exceptions import best_match

        value = _parsed(text)
        error = best_match(self._validator.iter_errors(value))
        if error is not None:
            place = error.json_path.removeprefix("$").removeprefix(".")
            reason = clean_message(error.message, _SHOWN_CHARS)
            raise ValueError(f"{place}: {reason}" if place else reason)
        record: dict[str, Any] = value
        return record

    def columns(self, records: Sequence[dict[str, Any] | None]) -> dict[str, pa.Array]:
        """Return the columns of N records; null for values that are null or missing."""
        rows = [{} if record is None else record for record in records]
        return {
            field.name: pa.array([row.get(field.name) for row in rows], field.type)
            for field in self.fields()
        }

    @property
    def _properties(self) -> dict[str, Schema]:
        properties: dict[str, Schema] = self._schema["properties"]
        return properties

    @cached_property
    def _validator(self) -> Any:
        from jsonschema import Draft202012Validator
        from jsonschema.validators import extend

        # By default 1.0 is an integer as well.
        checker = Draft202012Validator.TYPE_CHECKER.redefine(
            "integer", lambda _, value: type(value) is int
        )
        return extend(Draft202012Validator, type_checker=checker)(self._schema)


def _arrow_type(schema: Schema) -> pa.DataType:
    plain = without_null(schema)
    if plain["type"] == "array":
        return pa.list_(_arrow_type(plain["items"]))
    return pa.struct(Record(plain).fields()) if plain["type"] == "object" else _ARROW[plain["type"]]


def _is_measured(plain: Schema) -> bool:
    return plain["type"] in ("integer", "number", "boolean") or bool(values_of(plain))


def _parsed(text: str) -> Any:
    """Return the JSON value of a text; columns can hold all its numbers and strings."""
    try:
        value = json.loads(
            text,
            parse_float=_float,
            parse_int=_int,
            parse_constant=_no_number,
            object_pairs_hook=_object,
        )
        json.dumps(value, ensure_ascii=False).encode()  # fails over a lone surrogate
    except RecursionError:
        raise ValueError("is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"is not JSON: {clean_message(str(error), _SHOWN_CHARS)}") from None
    return value


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("the number is beyond float64")
    return number


def _int(text: str) -> int | float:
    number = int(text)
    return number if abs(number) <= MAX_NUMBER else _float(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a property occurs twice")
    return values


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")
