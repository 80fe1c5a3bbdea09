"""Entries of `source.features`: names, and mappings that are checked strictly."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from support.runs.jobs import job_of

from pipeline.core.errors import JobError
from pipeline.job.reading.loader import parse_job, problems_of_relative_paths
from pipeline.job.source import Source


def source(*features: Any, **fields: Any) -> Source:
    document = {
        "source": {"uri": "/in", "format": "parquet", "features": [*features], **fields},
        "model": {"factory": "a:b", "task": "regress"},
        "sink": {"uri": "/out"},
    }
    return parse_job(document, date=dt.date(2026, 11, 24), origin="job").source


def test_names_of_features_stay_strings():
    section = source("a", "b")
    assert section.features == ("a", "b")
    assert section.model_dump(mode="json")["features"] == ["a", "b"]
    assert section.input_columns.names == ("a", "b")


def test_a_mapping_of_a_feature_is_dumped_with_categories_as_text():
    entry = {"column": "plan", "categories": ["pro", 1, True, "1.5"]}
    section = source(entry, {"column": "t", "read_as": "days", "null": 3})
    assert section.model_dump(mode="json", exclude_defaults=True)["features"] == [
        {"column": "plan", "categories": ["pro", "1", "true", "1.5"]},
        {"column": "t", "read_as": "days", "null": 3.0},
    ]
    assert section.input_columns.names == ("plan", "t")


def test_a_null_in_a_column_of_texts_is_always_quarantined():
    for null in ({}, {"null": "quarantine"}):
        (column,) = source({"column": "p", "read_as": "text", **null}).features
        assert (column.null, column.is_text) == (null.get("null"), True)


def test_a_zero_for_nulls_must_not_be_the_first_category():
    entry = {"column": "plan", "categories": ["a"], "encoding": "index"}
    with pytest.raises(JobError, match="null_features: zero means the first category of plan"):
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
