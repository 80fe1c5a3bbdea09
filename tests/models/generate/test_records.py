"""Test that a text is a record if and only if its schema allows it, and the columns of records."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.models.record_schemas import REVIEW, SCHEMAS

from pipeline.models.generate.records import record_of
from pipeline.models.generate.schema import canonical

RECORD = record_of(canonical(REVIEW))
GOOD = {"mood": "bad", "stars": 3, "named": ["a", ""], "sure": None}
_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-1_001, 1_001), st.text("ab", max_size=6),
    st.sampled_from([0.5, -2.25, 1e-9, 123456.789]),
)  # fmt: skip


def near(node: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a canonical schema allows, and others that look like them."""
    if "anyOf" in node:
        node = node["anyOf"][0]
    known = node.get("enum", [node["const"]] if "const" in node else [])
    some: list[st.SearchStrategy[Any]] = [_SCALARS, *([st.sampled_from(known)] if known else [])]
    if node["type"] == "array":
        some += [st.lists(near(node["items"]), max_size=4)] * 4
    if node["type"] == "object":
        named = {name: near(schema) for name, schema in node["properties"].items()}
        some += [st.fixed_dictionaries({}, optional={**named, "odd": _SCALARS})]
        some += [st.fixed_dictionaries(named)] * 4
    return st.one_of(some)


def without_absent(record: Any, written: Any) -> Any:
    """Leave out of the columns of a record what its text does not say."""
    if isinstance(written, list):
        return [without_absent(*pair) for pair in zip(record, written, strict=True)]
    if isinstance(written, dict):
        assert all(value is None for name, value in record.items() if name not in written)
        return {name: without_absent(record[name], written[name]) for name in written}
    return record


@given(st.data())
def test_columns_hold_what_a_record_says_and_other_texts_are_none(data: st.DataObject):
    schema = canonical(data.draw(SCHEMAS))
    value = data.draw(near(json.loads(schema)))
    record = record_of(schema)
    if not jsonschema.Draft202012Validator(json.loads(schema)).is_valid(value):
        with pytest.raises(ValueError, match=r".") as refused:
            record.read(json.dumps(value))
        assert str(refused.value).isprintable()
        return
    table = pa.table(record.columns([record.read(json.dumps(value)), None]))
    table.validate(full=True)
    assert table.schema == pa.schema(record.fields())
    row, none = table.to_pylist()
    assert without_absent(row, value) == value
    assert {*none.values()} == {None}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "[] is not of type 'object'"),
        (json.dumps({**GOOD, "stars": 3.0}), "stars: 3.0 is not of type 'integer'"),
        (json.dumps({**GOOD, "stars": True}), "stars: True is not of type 'integer'"),
        (json.dumps({**GOOD, "stars": 6}), "stars: 6 is greater than the maximum of 5"),
        (json.dumps({**GOOD, "mood": "Good"}), "mood: 'Good' is not one of ['good', 'bad'"),
        (json.dumps({**GOOD, "named": ["a", "longer!"]}), "named[1]: 'longer!' is too long"),
        (json.dumps({**GOOD, "place": {}}), "place: 'row' is a required property"),
        (json.dumps({**GOOD, "odd": 1}), "('odd' was unexpected)"),
        (json.dumps({**GOOD, "named": [None]}), "named[0]: None is not of type 'string'"),
        ('{"mood": "bad", "mood": "bad"}', "a property occurs twice"),
        (json.dumps({**GOOD, "stars": float("inf")}), "Infinity is not a number"),
        (json.dumps({**GOOD, "named": ["\ud800"]}), "surrogates not allowed"),
        ("[" * 100_000, "is nested too deep"),
        (json.dumps(GOOD).replace("3", "3" * 5_000), "is not JSON"),
    ],
)
def test_what_is_no_record_says_why_and_where(text: str, problem: str):
    with pytest.raises(ValueError, match=r".") as refused:
        RECORD.read(text)
    assert problem in str(refused.value)


def test_numbers_beyond_float64_are_no_records():
    record = record_of(canonical({"type": "object", "properties": {"x": {"type": "number"}}}))
    assert record.columns([record.read('{"x": 1}')])["x"].to_pylist() == [1.0]
    assert record.columns([record.read(f'{{"x": {2**53 + 1}}}')])["x"].to_pylist() == [2.0**53]
    for number in ("1e999", "-1e999", "9" * 400):
        with pytest.raises(ValueError, match="the number is beyond float64"):
            record.read(f'{{"x": {number}}}')


def test_columns_are_typed_and_measured_where_a_schema_says_so():
    assert pa.schema(RECORD.fields()) == pa.schema(
        [
            ("mood", pa.string()),
            ("stars", pa.int64()),
            ("named", pa.list_(pa.string())),
            ("sure", pa.bool_()),
            ("place", pa.struct([("row", pa.int64())])),
        ]
    )
    assert RECORD.measured() == ["mood", "stars", "sure"]
