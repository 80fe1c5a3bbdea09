"""Entries of `source.features`: names as they were, mappings checked strictly, one line each."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from support.runs.jobs import job_of

from pipeline.core.errors import JobError
from pipeline.job.reading.loader import parse_job
from pipeline.job.reading.paths import problems_of_relative_paths
from pipeline.job.source import Source


def source(*features: Any, **fields: Any) -> Source:
    document = {
        "source": {"uri": "/in", "format": "parquet", "features": [*features], **fields},
        "model": {"factory": "a:b", "task": "regress"},
        "sink": {"uri": "/out"},
    }
    return parse_job(document, date=dt.date(2026, 11, 24), origin="job").source


def test_names_stay_text_so_that_fingerprints_do():
    found = source("a", "b")
    assert found.features == ("a", "b")
    assert found.model_dump(mode="json")["features"] == ["a", "b"]
    assert found.input_columns.names == ("a", "b")


def test_a_mapping_dumps_what_was_said_of_it_and_categories_as_text():
    entry = {"column": "plan", "categories": ["pro", 1, True, "1.5"]}
    found = source(entry, {"column": "t", "read_as": "days", "null": 3})
    assert found.model_dump(mode="json", exclude_defaults=True)["features"] == [
        {"column": "plan", "categories": ["pro", "1", "true", "1.5"]},
        {"column": "t", "read_as": "days", "null": 3.0},
    ]
    assert found.input_columns.names == ("plan", "t")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (3, r"source\.features\.0 = 3: Input should be a valid string"),
        ({"column": "p", "categorie": ["a"]}, r"0\.categorie: unknown key, did you mean categori"),
        ({"column": "p", "categories": [1.5]}, r"0\.categories\.0 = 1.5: .* valid string; in quot"),
        ({"column": "p", "categories": ["a", "a"]}, "name each of categories once"),
        ({"column": "p", "categories": []}, "categories must name at least one value"),
        (
            {"column": "p", "vocabulary": "/v"},
            r"source\.features\.0\.vocabulary: is gone, .* in the training code, .* categories: .*",
        ),
        ({"column": "p", "categories": ["a"], "read_as": "days"}, "read_as makes numbers"),
        ({"column": "p", "unknown": "own"}, "unknown has no effect without categories"),
        ({"column": "p", "encoding": "index"}, "encoding has no effect without categories"),
        ({"column": "p", "categories": ["a"], "max_categories": 3}, "gone with vocabulary; leave"),
        (
            {"column": "p", "categories": ["a"], "encoding": "index", "unknown": "zero"},
            "unknown: zero is the index of the first category; give own",
        ),
        (
            {"column": "p", "categories": ["a"], "encoding": "index", "null": "zero"},
            "null: zero is the index of the first category; give unknown",
        ),
        ({"column": "p", "categories": ["a"], "null": 3}, "null is a number, and the column has"),
        ({"column": "p", "read_as": "text", "null": "zero"}, "a text has no value in place of"),
        ({"column": "p", "null": "unknown"}, "null: unknown has no effect without categories"),
        ({"column": "p", "null": "zer"}, r"0\.null = 'zer': .*did you mean zero\?"),
        ({"column": "p", "null": 1e39}, "null is too large for float32"),
        ({"column": "p", "read_as": "hours"}, r"read_as = 'hours': .*did you mean hour\?"),
        ({"column": "p", "origin": "2026-01-01"}, "origin has no effect without read_as"),
        ({"column": "p", "read_as": "days", "origin": "soon"}, "origin = soon: write 2026-01-31"),
    ],
)
def test_what_is_wrong_is_one_line(entry: Any, words: str):
    with pytest.raises(JobError, match=words) as caught:
        source(entry)
    assert "\n" not in str(caught.value)


def test_a_null_in_a_column_of_texts_is_quarantined_whether_that_is_said_or_not():
    for said in ({}, {"null": "quarantine"}):
        (found,) = source({"column": "p", "read_as": "text", **said}).features
        assert (found.null, found.is_text) == (said.get("null"), True)


def test_a_field_that_is_gone_is_told_of_one_of_several_inputs():
    inputs = {"x": {"features": [{"column": "p", "vocabulary": "/v"}]}, "y": {"text_column": "t"}}
    document = {
        "source": {"uri": "/in", "format": "parquet", "inputs": inputs},
        "model": {"factory": "a:b", "task": "regress"},
        "sink": {"uri": "/out"},
    }
    with pytest.raises(JobError, match=r"inputs\.x\.features\.0\.vocabulary: is gone, since"):
        parse_job(document, date=dt.date(2026, 11, 24), origin="job")


def test_a_zero_for_nulls_must_not_be_the_first_category():
    entry = {"column": "plan", "categories": ["a"], "encoding": "index"}
    with pytest.raises(JobError, match="null_features: zero is the first category of plan"):
        source(entry, null_features="zero")
    source({**entry, "null": "quarantine"}, null_features="zero")


def test_relative_files_of_categories_are_refused_for_another_machine():
    job = job_of(
        {"factory": "a:b", "task": "regress"},
        {
            "uri": "/in",
            "format": "parquet",
            "features": [{"column": "p", "categories": ["a"]}, {"column": "q", "categories": "c"}],
        },
        sink={"uri": "/out"},
    )
    assert [problem.path for problem in problems_of_relative_paths(job)] == [
        ("source", "features", 1, "categories")
    ]
