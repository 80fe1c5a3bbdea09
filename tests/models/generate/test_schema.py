"""Test which schemas are accepted: equal schemas have one form, others are refused in one line."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from support.models.record_schemas import REVIEW, SCHEMAS

from pipeline.models.generate.schema import (
    MAX_DEPTH,
    MAX_NODES,
    SchemaError,
    all_schemas,
    canonical,
)


def of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


@given(SCHEMAS)
def test_the_canonical_form_is_its_own_and_says_the_same(schema: dict[str, Any]):
    text = canonical(schema)
    assert canonical(json.loads(text)) == text
    assert [*json.loads(text)["properties"]] == [*schema["properties"]]
    assert {*json.loads(text)["required"]} == {*schema["required"]}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"type": ["string", "null"]}, {"anyOf": [{"type": "null"}, {"type": "string"}]}),
        ({"enum": ["a", None]}, {"anyOf": [{"type": "string", "enum": ["a"]}, {"type": "null"}]}),
        ({"enum": ["a", "a"]}, {"const": "a", "title": "A", "description": "a", "default": "b"}),
        ({"type": "number", "minimum": 0}, {"type": "number", "minimum": 0.0}),
        ({"type": "number", "const": 1}, {"const": 1.0}),
        ({"type": "integer", "minimum": 1.0}, {"type": "integer", "minimum": 1}),
        ({"type": "integer"}, {"type": "integer", "maximum": (1 << 53) - 1}),
        (of(a={"const": 1}), {**of(a={"const": 1}), "additionalProperties": False, "required": []}),
    ],
)
def test_equal_schemas_have_one_form(one: dict[str, Any], other: dict[str, Any]):
    assert canonical(of(x=one)) == canonical(of(x=other))


def test_references_are_what_they_stand_for_as_pydantic_writes_them():
    place = {"type": "object", "properties": {"row": {"type": "integer"}}, "required": ["row"]}
    referred = of(a={"$ref": "#/$defs/Place"}, b={"anyOf": [{"$ref": "#/$defs/Place"},
                                                           {"type": "null"}]})  # fmt: skip
    whole = of(a=place, b={"anyOf": [place, {"type": "null"}]})
    assert canonical({**referred, "$defs": {"Place": place}}) == canonical(whole)
    longest = {**of(x={"$ref": "#/$defs/A885"}), "$defs": CHAIN}
    assert canonical(longest) == canonical(of(x={"type": ["string", "null"]}))


def test_what_is_accepted_can_be_read_again_however_large_it_is():
    many = {f"p{n}": {"type": ["integer", "null"]} for n in range(MAX_NODES - 1)}
    wide = {"enum": ["\u4e2d" * 40 + f"{n}" for n in range(1_000)]}
    deep: dict[str, Any] = wide
    for _ in range(MAX_DEPTH - 1):
        deep = {"anyOf": [{"type": "array", "items": deep}, {"type": "null"}]}
    for schema in (of(**many), of(x=wide), of(x=deep)):
        assert canonical(json.loads(canonical(schema))) == canonical(schema)


def test_the_order_of_properties_counts_and_that_of_required_does_not():
    a, b = {"type": "string"}, {"type": "integer"}
    assert canonical(of(a=a, b=b)) != canonical(of(b=b, a=a))
    both = of(a=a, b=b)
    assert canonical({**both, "required": ["a", "b"]}) == canonical(
        {**both, "required": ["b", "a"]}
    )


LAUGHS = {
    f"L{n}": of(**{f"p{k}": {"$ref": f"#/$defs/L{n + 1}"} for k in range(9)}) for n in range(30)
}
DEEP: dict[str, Any] = {"type": "string"}
for _ in range(400):
    DEEP = {"type": "array", "items": DEEP}
NULLS: dict[str, Any] = {"type": "string"}
for _ in range(400):
    NULLS = {"anyOf": [NULLS, {"type": "null"}]}
CHAIN = {f"A{n}": {"anyOf": [{"$ref": f"#/$defs/A{n + 1}"}, {"type": "null"}]} for n in range(900)}
CHAIN["A900"] = {"type": "string"}
HOSTILE = {
    "more references than values": {**of(x={"$ref": "#/$defs/L0"}),
                                    "$defs": {**LAUGHS, "L30": {"type": "string"}}},
    "one that is in itself": {**of(x={"$ref": "#/$defs/A"}),
                              "$defs": {"A": of(y={"anyOf": [{"$ref": "#/$defs/A"},
                                                             {"type": "null"}]})}},
    "a deep one": of(x=DEEP),
    "null in null": of(x={"anyOf": [{"anyOf": [{"type": "string"}, {"type": "null"}]}] * 2}),
    "a wide one": of(**{f"p{n}": {"type": "boolean"} for n in range(MAX_NODES + 1)}),
    "a long one": of(x={"enum": ["a" * 70_000]}),
    "many values": of(x={"enum": [f"{n}" for n in range(2_000)]}),
    "a long string": of(x={"type": "string", "maxLength": 10**9}),
    "a long array": of(x={"type": "array", "items": {"const": 1}, "maxItems": 10**18}),
    "many long strings": of(**{f"p{n}": {"type": "string", "maxLength": 1_000} for n in range(99)}),
    "a large number": of(x={"type": "integer", "maximum": 10**400}),
    "no number": of(x={"type": "number", "minimum": float("nan")}),
    "a long one behind references": {
        **of(**{f"p{n}": {"$ref": "#/$defs/A"} for n in range(200)}),
        "$defs": {"A": {"enum": ["a" * 500]}},
    },
    "anyOf without end": of(x=NULLS),
    "references without end": {**of(x={"$ref": "#/$defs/A0"}), "$defs": CHAIN},
    "a pattern": of(x={"type": "string", "pattern": "(a*)*b"}),
    "patterns of names": {**of(x={"const": 1}), "patternProperties": {".*": {"const": 1}}},
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_schema_that_explodes_is_one_line_at_once(name: str):
    started = time.process_time()
    with pytest.raises(SchemaError) as refused:
        canonical(HOSTILE[name])
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 500
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ([], "expected a mapping, the JSON schema of an object"),
        ({"type": "string"}, "a record is of type object"),
        ({"anyOf": [of(a={"const": 1}), {"type": "null"}]}, "a record is of type object"),
        (of(), "an object needs properties"),
        (of(a={}), "properties.a: type is [], expected one of string, integer, number, boolean"),
        (of(a={"type": ["string", None]}), "write null in quotes there"),
        (of(a={"type": ["string", "integer"]}), "properties.a: type is"),
        (of(a=True), "properties.a: expected a mapping"),
        (of(a={"type": "string", "format": "date"}), 'properties.a: "format" is not supported; '
         "string may have enum, const, minLength, maxLength"),
        (of(a={"type": "integer", "exclusiveMinimum": 0}), '"exclusiveMinimum" is not supported'),
        (of(a={"oneOf": [{"const": 1}]}), 'properties.a: "oneOf" is not supported; a value has a'),
        (of(a={"type": "array"}), "properties.a: an array needs items"),
        (of(a={"type": "array", "items": {"type": "x"}}), 'properties.a.items: type is "x"'),
        (of(a={"enum": ["a", 1]}), "properties.a: 1 is not of type string"),
        (of(a={"type": ["string", "null"], "enum": ["a"]}), "null must be both in type and"),
        (of(a={"type": "integer", "const": True}), "true is not of type integer"),
        (of(a={"enum": ["a"], "maxLength": 3}), "enum and const allow no other keywords"),
        (of(a={"enum": ["\ud800"]}), "is not valid Unicode"),
        (of(a={"type": "integer", "minimum": 0.5}), "properties.a.minimum: 0.5 is not an integer"),
        (of(a={"type": "integer", "minimum": 2, "maximum": 1}), "minimum 2 is above maximum 1"),
        (of(a={"type": "number", "minimum": 1e-12}), "at most 53 bits and 9 decimals"),
        (of(a={"type": "string", "maxLength": -1}), "expected an integer >= 0"),
        (of(a={"$ref": "http://example.com/x"}), "names no definition of this schema"),
        ({**of(a={"$ref": "#/$defs/A884"}), "$defs": CHAIN}, "a: more than 32 of $ref and anyOf"),
        ({**of(a={"const": 1}), "additionalProperties": True}, "must be false"),
        ({**of(a={"const": 1}), "required": ["b"]}, '"b" is not one of the properties'),
        (of(**{"a b": {"const": 1}}), '"a b" is not a column name'),
        (of(**{"_a": {"const": 1}}), '"_a" is not a column name'),
        (of(a={"const": 1}, A={"const": 2}), "'a' and 'A' are one column to many readers"),
        (of(text={"const": 1}), "properties.text: is a column of task 'generate'"),
        (of(Finish_Reason={"const": 1}), "properties.Finish_Reason: is a column"),
    ],
)  # fmt: skip
def test_what_is_not_in_the_subset_is_refused_with_its_place(schema: Any, problem: str):
    with pytest.raises(SchemaError) as refused:
        canonical(schema)
    assert problem in str(refused.value)
    assert str(refused.value).isprintable()


def test_a_record_knows_the_values_in_it():
    assert [value["type"] for value in all_schemas(json.loads(canonical(REVIEW)))] == [
        *("object", "string", "integer", "array", "string", "boolean", "object", "integer")
    ]
