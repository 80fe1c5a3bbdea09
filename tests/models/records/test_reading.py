"""A text is a record exactly if an independent validator of JSON Schema says so."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.models.record_schemas import REVIEW, SCHEMAS

from pipeline.models.records.reading import columns_of, fields_of, measured_of, read_record
from pipeline.models.records.subset import canonical, record_of

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
    found: list[st.SearchStrategy[Any]] = [_SCALARS, *([st.sampled_from(known)] if known else [])]
    if node["type"] == "array":
        found += [st.lists(near(node["items"]), max_size=4)] * 4
    if node["type"] == "object":
        named = {name: near(each) for name, each in node["properties"].items()}
        found += [st.fixed_dictionaries({}, optional={**named, "odd": _SCALARS})]
        found += [st.fixed_dictionaries(named)] * 4
    return st.one_of(found)


def without_absent(found: Any, said: Any) -> Any:
    """Leave out of a record what its text does not say."""
    if isinstance(said, list):
        return [without_absent(*pair) for pair in zip(found, said, strict=True)]
    if isinstance(said, dict):
        assert all(each is None for name, each in found.items() if name not in said)
        return {name: without_absent(found[name], said[name]) for name in said}
    return found


@given(st.data())
def test_it_accepts_what_an_independent_validator_accepts(data: st.DataObject):
    schema = canonical(data.draw(SCHEMAS))
    value = data.draw(near(json.loads(schema)))
    if not jsonschema.Draft202012Validator(json.loads(schema)).is_valid(value):
        with pytest.raises(ValueError, match=r".") as refused:
            read_record(record_of(schema), json.dumps(value))
        assert str(refused.value).isprintable()
        return
    found = read_record(record_of(schema), json.dumps(value))
    assert without_absent(found, value) == value
    rows = columns_of(record_of(schema), [json.dumps(value), None])
    for field in fields_of(record_of(schema)):
        rows[field.name].validate(full=True)
        assert rows[field.name].type == field.type
        assert rows[field.name][1].as_py() is None
        assert rows[field.name][0].is_valid == (found[field.name] is not None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ("[]", "[] is no object"),
        (json.dumps({**GOOD, "stars": 3.0}), "stars: 3.0 is no integer"),
        (json.dumps({**GOOD, "stars": True}), "stars: true is no integer"),
        (json.dumps({**GOOD, "stars": 6}), "stars: 6 is out of bounds"),
        (json.dumps({**GOOD, "mood": "Good"}), 'mood: "Good" is none of its values'),
        (
            json.dumps({**GOOD, "named": ["a", "longer!"]}),
            "named[1]: 7 is out of bounds",
        ),
        (json.dumps({**GOOD, "place": {}}), "place: row is missing"),
        (json.dumps({**GOOD, "odd": 1}), '"odd" is none of its properties'),
        (json.dumps({**GOOD, "named": [None]}), "named[0]: null is no string"),
        ('{"mood": "bad", "mood": "bad"}', "a property is there twice"),
        (json.dumps({**GOOD, "stars": float("inf")}), "Infinity is no number"),
        (json.dumps({**GOOD, "named": ["\ud800"]}), "surrogates not allowed"),
        ("[" * 100_000, "is nested too deep"),
        (json.dumps(GOOD).replace("3", "3" * 5_000), "is no JSON"),
    ],
)
def test_what_is_no_record_says_why_and_where(text: str, problem: str):
    with pytest.raises(ValueError, match=r".") as refused:
        read_record(RECORD, text)
    assert problem in str(refused.value)


def test_numbers_beyond_float64_are_no_records():
    record = record_of(canonical({"type": "object", "properties": {"x": {"type": "number"}}}))
    assert read_record(record, '{"x": 1}') == {"x": 1.0}
    for number in ("1e999", "-1e999", "9" * 400):
        with pytest.raises(ValueError, match="x: the number is beyond float64"):
            read_record(record, f'{{"x": {number}}}')


def test_columns_are_typed_and_null_where_a_record_says_nothing():
    texts = [json.dumps(GOOD), None, json.dumps({**GOOD, "sure": True, "place": {"row": 7}})]
    table = pa.table(columns_of(RECORD, texts))
    assert table.schema == pa.schema(fields_of(RECORD)) == pa.schema(
        [
            ("mood", pa.string()),
            ("stars", pa.int64()),
            ("named", pa.list_(pa.string())),
            ("sure", pa.bool_()),
            ("place", pa.struct([("row", pa.int64())])),
        ]
    )  # fmt: skip
    assert table["sure"].to_pylist() == [None, None, True]
    assert table["place"].to_pylist() == [None, None, {"row": 7}]
    assert measured_of(RECORD) == ["mood", "stars", "sure"]
    assert fields_of(None) == []
