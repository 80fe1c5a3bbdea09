"""Test that columns of a job and inputs of a model match by name, or are refused."""

from __future__ import annotations

from typing import Any

import pytest
from support.inputs.shard_columns import features_of

from pipeline.core.errors import JobError
from pipeline.preprocessing.model_input import TensorColumn
from pipeline.runs.preparing.settled_source import match_columns

COLUMNS = (
    TensorColumn("age", "int64"),
    TensorColumn("plan", "text"),
    TensorColumn("income", "float32"),
)


def match(*features: str | dict[str, Any]) -> list[Any]:
    return [
        entry if isinstance(entry, str) else entry.model_dump(exclude_unset=True)
        for entry in match_columns(features_of(*features), COLUMNS, "m.onnx")
    ]


def test_the_model_says_order_and_types():
    typed = [
        {"column": "age", "read_as": "float64"},
        {"column": "plan", "read_as": "text"},
        "income",
    ]
    assert match("income", "plan", "age") == typed
    assert match(*typed) == typed
    again = {"column": "age", "null": 0.0}
    assert match("plan", again, "income")[0] == {**again, "read_as": "float64"}


def test_what_the_job_makes_of_a_column_stays():
    index = {"column": "age", "categories": ("a", "b"), "encoding": "index"}
    assert match("income", "plan", index)[0] == index
    days = {"column": "income", "read_as": "days"}
    assert match("age", "plan", days)[2] == days


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (["age", "plan"], "missing: income"),
        (["age", "plan", "income", "city"], "not among its inputs: city"),
        (["age", "plan", "Income"], "missing: income; not among its inputs: Income"),
        (["age", "plan", "income", "age"], "named twice: age"),
    ],
)
def test_other_names_are_refused_with_both_lists(features: list[str], message: str):
    with pytest.raises(JobError) as caught:
        match(*features)
    assert str(caught.value) == (
        "source.features: m.onnx takes age, plan, income, each by its name; the job has "
        f"{', '.join(features)}: {message}"
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"column": "plan", "categories": ["a"]},
            "takes 'plan' as text, and the job makes numbers",
        ),
        (
            {"column": "income", "read_as": "text"},
            "takes 'income' as float32, and the job has read_",
        ),
    ],
)
def test_another_type_than_the_model_takes_is_refused(entry: dict[str, Any], message: str):
    others = [name for name in ("age", "plan", "income") if name != entry["column"]]
    with pytest.raises(JobError, match=message):
        match(entry, *others)


def test_names_of_a_file_become_printable():
    with pytest.raises(JobError) as caught:
        match_columns(["a"], [TensorColumn("\x1b]0;x\x07\nERROR", "float32")], "m.onnx")
    assert str(caught.value).isprintable()
