"""`source.where`: one normal form for equal conditions, and one line for what is not supported."""

from __future__ import annotations

import pytest
from support.runs.jobs import DATE

from pipeline.core.errors import JobError
from pipeline.job.condition import parse
from pipeline.job.reading.loader import parse_job


def job_with(where: object, **source: object) -> dict[str, object]:
    fields = {"uri": "in", "format": "parquet", "where": where, **source}
    return {"source": fields, "model": {"name": "tiny"}, "sink": {"uri": "out"}}


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("a = 1", '"a" = 1'),
        ("1 >= a", '"a" <= 1'),
        ("a IN ( 1 )", '"a" = 1'),
        ("not a = 1", '"a" <> 1'),
        ("not (a < 1 and b >= 'it''s')", "\"a\" >= 1 or \"b\" < 'it''s'"),
        ("a between 1 and 2.5", '"a" >= 1 and "a" <= 2.5'),
        ("not a between 1 and 2", '"a" < 1 or "a" > 2'),
        ("a not in (1, -2)", '"a" not in (1, -2)'),
        ("not a is null", '"a" is not null'),
        ("active or not active", '"active" = true or "active" = false'),
        ("a = 1 and (b = 2 and (c = 3 or d = 4))", '"a" = 1 and "b" = 2 and ("c" = 3 or "d" = 4)'),
        ('meta."a b" = 1e2', '"meta.a b" = 1E+2'),
        ('"with ""quotes""" is null', '"with ""quotes""" is null'),
        ("d > date '2026-11-24'", "\"d\" > date '2026-11-24'"),
        ("t > timestamp '2026-11-24T01:02:03Z'", "\"t\" > timestamp '2026-11-24 01:02:03+00:00'"),
    ],
)
def test_a_condition_has_one_normal_form_that_is_a_condition(text: str, normal: str):
    assert str(parse(text)) == normal
    assert parse(normal) == parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a like 'x%'", r"a LIKE 'x%' is not supported here; allowed are comparisons of a column"),
        ("lower(a) = 'x'", r"LOWER\(a\) is not supported"),
        ("a + 1 = 2", r"a \+ 1 is not supported"),
        ("a = b", "b is not supported"),
        ("1 = 1", "1 is not supported"),
        ("true", "TRUE is not supported"),
        ("a = null", "NULL is not supported"),
        ("a in ()", r"a IN \(\) is not supported"),
        ("a in (select 1)", r"a IN \(SELECT 1\) is not supported"),
        ("a::int = 1", r"CAST\(a AS INT\) is not supported"),
        ("a is true", "a IS TRUE is not supported"),
        ("select 1", "SELECT 1 is not supported"),
        ("a = 1; drop table b", "is not one condition"),
        ("", "'' is not one condition"),
        ("a = 1 b", "a = 1 AS b is not supported"),
        ("(a = 1", r"Expecting \), at character 6"),
        ("a = date '24.11.2026'", r"'24\.11\.2026' is no date or time, as"),
        ("a > timestamp '2026-11-24 01:02:03.1234567'", "is no date or time"),
        ("a = date '2026-11-24 01:02:03'", "is not supported"),
        ("a = " + "9" * 5000, "4300 digits"),
        ("(" * 3000 + "a = 1" + ")" * 3000, "is nested too deeply"),
    ],
)
def test_what_is_not_supported_is_named_in_one_line(text: str, message: str):
    with pytest.raises(JobError, match=message) as caught:
        parse_job(job_with(text), date=DATE, origin="job.yaml")
    assert "source.where" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_condition_may_have_the_date_of_the_run():
    document = job_with("day = date '${date}' and name <> '${date}'")
    job = parse_job(document, date=DATE, origin="job.yaml")
    assert str(job.source.condition) == f"\"day\" = date '{DATE}' and \"name\" <> '{DATE}'"


@pytest.mark.parametrize("name", ["images", "webdataset"])
def test_a_format_that_cannot_choose_rows_refuses_it(name: str):
    with pytest.raises(JobError, match=f"where has no effect with format '{name}'; convert"):
        parse_job(job_with("a = 1", format=name), date=DATE, origin="job.yaml")
