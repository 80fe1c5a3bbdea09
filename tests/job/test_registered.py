"""Options of formats, and names in the registries."""

from __future__ import annotations

import copy
import datetime as dt
from pathlib import Path
from typing import Any

import pytest
import toy_package
from pydantic import Field

from pipeline.core.errors import JobError
from pipeline.core.registry import SOURCES, usable
from pipeline.job.reading.loader import parse_job
from pipeline.job.registered import check_options
from pipeline.job.section import Section

DAY = dt.date(2026, 11, 24)
JOB: dict[str, Any] = {
    "source": {"uri": "in", "format": "images"},
    "model": {"name": "resnet18", "weights": "w.safetensors", "labels": ["a", "b"]},
    "sink": {"uri": "out"},
}


class Sizes(Section):
    rows: int = Field(default=1, ge=1)
    parts: tuple[int, ...] = ()


def job_with(section: str, **fields: Any) -> dict[str, Any]:
    document = copy.deepcopy(JOB)
    document[section] |= fields
    return document


def refusal(section: str, **fields: Any) -> str:
    with pytest.raises(JobError) as caught:
        parse_job(job_with(section, **fields), date=DAY, origin="job")
    return str(caught.value)


def test_every_wrong_option_is_named_with_its_field_in_one_line():
    wrong = {"rows": 0, "parts": [1, "x"], "other": 1}
    words = r"^options\.rows: .*; options\.parts\.1: .*; options\.other: unknown key"
    with pytest.raises(ValueError, match=words):
        check_options(Sizes, wrong, "options", "format 'x'")
    check_options(Sizes, {"rows": 3}, "options", "format 'x'")


def test_options_of_a_format_without_options_are_refused():
    check_options(None, {}, "options", "format 'x'")
    with pytest.raises(ValueError, match=r"^options has no effect with format 'x'"):
        check_options(None, {"a": 1}, "options", "format 'x'")


def test_a_broken_distribution_is_named_and_skipped_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    points = {"pipeline.sources": {"broken": "not_there:Format"}}
    monkeypatch.syspath_prepend(toy_package.install(tmp_path, points))
    assert "not_there:Format of toys 1.0 cannot be imported" in refusal("source", format="broken")
    assert "broken" not in dict(usable(SOURCES))
    [line] = [record.getMessage() for record in caplog.records]
    assert "of toys 1.0 cannot be imported" in line


@pytest.mark.parametrize("name", ["model", "model.", ".name", ""])
def test_an_override_by_name_needs_a_section_and_a_field(name: str):
    with pytest.raises(JobError, match=rf"^override {name}: write section\.field=value"):
        parse_job(JOB, date=DAY, origin="job", overrides={name: 3})


def test_a_deeply_nested_document_is_refused_in_one_line():
    nested: dict[str, Any] = {}
    for _ in range(5000):
        nested = {"a": nested}
    with pytest.raises(JobError, match="nested too deeply"):
        parse_job(nested, date=DAY, origin="job")
