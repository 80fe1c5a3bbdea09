"""Schemas of records: an example, and hypothesis strategies for the supported subset."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

REVIEW: dict[str, Any] = {
    "title": "Review",
    "type": "object",
    "properties": {
        "mood": {"enum": ["good", "bad", "na\u00efve \N{GRINNING FACE}"]},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "named": {"type": "array", "maxItems": 2, "items": {"type": "string", "maxLength": 6}},
        "sure": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        "place": {
            "type": "object",
            "properties": {"row": {"type": "integer", "minimum": 0, "maximum": 99}},
            "required": ["row"],
        },
    },
    "required": ["mood", "stars", "named", "sure"],
}
_NAMES = st.sampled_from(["a", "b", "Cd", "e_1", "label", "score", "x2"])
_TEXTS = st.text(st.characters(codec="utf-8"), max_size=6)
_INTEGERS = st.integers(-1_000, 1_000)
_NUMBERS = st.one_of(_INTEGERS, st.sampled_from([0.5, -2.25, 1e-9, 123456.789]))


def _between(name: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A type with a least and a most value, either, or neither."""
    low, high = {"integer": ("minimum", "maximum"), "number": ("minimum", "maximum"),
                 "string": ("minLength", "maxLength")}[name]  # fmt: skip
    pairs = st.tuples(values, values).map(sorted)
    return st.one_of(
        st.just({"type": name}),
        values.map(lambda value: {"type": name, low: value}),
        pairs.map(lambda pair: {"type": name, low: pair[0], high: pair[1]}),
    )


_LEAVES = st.one_of(
    _between("string", st.integers(0, 5)),
    _between("integer", _INTEGERS),
    _between("number", _NUMBERS),
    st.just({"type": "boolean"}),
    st.lists(_TEXTS, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    st.one_of(_TEXTS, _INTEGERS, _NUMBERS, st.booleans()).map(lambda value: {"const": value}),
)


def _arrays(items: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    sizes = st.tuples(st.integers(0, 2), st.integers(2, 3))
    return st.builds(
        lambda item, size: {"type": "array", "items": item, "minItems": size[0],
                            "maxItems": size[1]},
        items, sizes,
    )  # fmt: skip


def _objects(values: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    properties = st.dictionaries(_NAMES, values, min_size=1, max_size=3)
    return properties.flatmap(
        lambda named: st.lists(st.sampled_from(sorted(named)), unique=True).map(
            lambda required: {"type": "object", "properties": named, "required": required}
        )
    )


def _nullable(values: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return values.map(lambda value: {"anyOf": [value, {"type": "null"}]})


_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(_arrays(inner), _objects(inner), _nullable(inner)),
    max_leaves=5,
)
SCHEMAS = _objects(_VALUES)
"""Any schema of the subset, of a few values."""
