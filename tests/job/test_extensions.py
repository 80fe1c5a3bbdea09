"""What is said of options that a job gives for formats, inputs, tasks, runtimes: one line each."""

from __future__ import annotations

import copy
import datetime as dt
from pathlib import Path
from typing import Any

import pytest
import toy_input
import toy_package
from pydantic import Field

from pipeline.core.errors import JobError
from pipeline.job.extensions import check_options, option_problems
from pipeline.job.reading.loader import parse_job
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


def test_every_wrong_option_is_named_with_its_field():
    wrong = {"rows": 0, "parts": [1, "x"], "other": 1}
    found = [*option_problems(Sizes, wrong, "options", "format 'x'")]
    assert sorted(line.partition(": ")[0] for line in found) == [
        "options.other",
        "options.parts.1",
        "options.rows",
    ]
    assert "options.rows: Input should be greater than or equal to 1" in found
    assert [*option_problems(Sizes, {"rows": 2}, "options", "format 'x'")] == []


def test_options_of_what_has_none_are_refused_only_if_there_are_some():
    assert [*option_problems(None, {}, "options", "format 'x'")] == []
    assert [*option_problems(None, {"a": 1}, "options", "format 'x'")] == [
        "options has no effect with format 'x'"
    ]


def test_a_check_raises_all_in_one_line():
    with pytest.raises(ValueError, match=r"^options\.rows: .*; options\.other: "):
        check_options(Sizes, {"rows": 0, "other": 1}, "options", "format 'x'")
    check_options(Sizes, {"rows": 3}, "options", "format 'x'")


@pytest.mark.parametrize(
    ("section", "field", "owner"),
    [
        ("source", "input_options", "input 'image'"),
        ("model", "task_options", "task 'classify'"),
        ("model", "runtime_options", "runtime 'eager'"),
    ],
)
def test_built_in_ones_have_no_options(section: str, field: str, owner: str):
    fields: dict[str, Any] = {field: {"a": 1}}
    if field == "task_options":
        fields["task"] = "classify"
    assert refusal(section, **fields).endswith(f"{field} has no effect with {owner}")


def test_options_of_an_installed_input_are_checked_by_what_it_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(toy_package.install(tmp_path, toy_input.POINTS))
    said = refusal("source", input="toy", input_options={"head_bytes": "x"})
    assert "input_options.head_bytes: Input should be a valid integer" in said
    said = refusal("source", input="toy", input_options={"tail_bytes": 4})
    assert "input_options.tail_bytes: unknown key" in said
    document = job_with("source", input="toy", input_options={"head_bytes": 4})
    assert parse_job(document, date=DAY, origin="job").source.input_options == {"head_bytes": 4}


def test_a_broken_distribution_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    points = {"pipeline.sources": {"broken": "not_there:Format"}}
    monkeypatch.syspath_prepend(toy_package.install(tmp_path, points))
    assert "not_there:Format of toys 1.0 cannot be imported" in refusal("source", format="broken")


@pytest.mark.parametrize("name", ["model", "model.", ".name", ""])
def test_an_override_by_name_needs_a_section_and_a_field(name: str):
    with pytest.raises(JobError, match=rf"^override {name}: write section\.field=value"):
        parse_job(JOB, date=DAY, origin="job", overrides={name: 3})


def test_a_field_of_another_task_is_refused_without_a_way_that_there_is_not():
    said = refusal("model", task="classify", min_score=0.5)
    assert "min_score has no effect with task 'classify'" in said
    assert said.endswith("leave it out") or said.endswith("--set model.min_score=null")
    assert "XX" not in said


def test_values_for_other_channels_are_counted_in_words():
    transform = {"size_px": 4, "channels": "gray", "mean": [0.5, 0.5, 0.5], "std": [0.5]}
    document = {**copy.deepcopy(JOB), "transform": transform}
    with pytest.raises(JobError, match="mean has 3 numbers, channels 'gray' needs 1"):
        parse_job(document, date=DAY, origin="job")
    transform |= {"channels": "rgb", "mean": [0.5], "std": [0.5, 0.5, 0.5]}
    with pytest.raises(JobError, match="mean has 1 number, channels 'rgb' needs 3"):
        parse_job({**document, "transform": transform}, date=DAY, origin="job")


def test_a_document_that_is_nested_too_deep_is_one_line_though_nothing_is_overridden():
    nested: dict[str, Any] = {}
    for _ in range(5000):
        nested = {"a": nested}
    with pytest.raises(JobError, match="nested too deep"):
        parse_job(nested, date=DAY, origin="job")
