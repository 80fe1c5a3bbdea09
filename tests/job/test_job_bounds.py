"""Exact limits of a job file."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from pipeline.core.errors import JobError
from pipeline.job.job import Job
from pipeline.job.reading import substitution, yaml_reader
from pipeline.job.reading.dates import seconds_until
from pipeline.job.reading.loader import parse_job
from pipeline.job.reading.substitution import Substitution

DAY = dt.date(2026, 11, 24)
START = dt.datetime(2026, 11, 24, 22, 0, 30, 250_000, tzinfo=dt.UTC)


def job_of(**model: object) -> Job:
    document = {"source": {"uri": "in", "format": "images"}, "model": model, "sink": {"uri": "out"}}
    return parse_job(document, date=DAY, origin="job.yaml")


@pytest.mark.parametrize("text", ["[a, [b, c], d, e, f]", "{a: b, c: [d, e], f: g}"])
def test_the_limit_of_nodes_is_exact(text: str, monkeypatch: pytest.MonkeyPatch):
    expected = yaml_reader.parse(text).value
    root = yaml_reader._Composer(text)
    root.get_single_node()
    monkeypatch.setattr(yaml_reader, "MAX_NODES", root._num_nodes)
    assert yaml_reader.parse(text).value == expected
    monkeypatch.setattr(yaml_reader, "MAX_NODES", root._num_nodes - 1)
    with pytest.raises(ValueError, match="values or"):
        yaml_reader.parse(text)


def test_nodes_behind_an_alias_count_each_time(monkeypatch: pytest.MonkeyPatch):
    text = "[&x [a, b], *x, *x]"
    monkeypatch.setattr(yaml_reader, "MAX_NODES", 10)
    assert yaml_reader.parse(text).value == [["a", "b"]] * 3
    monkeypatch.setattr(yaml_reader, "MAX_NODES", 9)
    with pytest.raises(ValueError, match="values or"):
        yaml_reader.parse(text)


def test_earlier_nodes_do_not_raise_the_limit_of_depth():
    with pytest.raises(ValueError, match="nested more than 32 levels deep"):
        yaml_reader.parse("[" + "a," * 2000 + 2000 * "[")


def test_the_limit_of_bytes_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "job.yaml"
    path.write_text("a: 1 # and more\n")
    monkeypatch.setattr(yaml_reader, "MAX_BYTES", path.stat().st_size)
    assert yaml_reader.read_yaml(str(path)).value == {"a": 1}
    monkeypatch.setattr(yaml_reader, "MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(JobError, match="a job file may have at most"):
        yaml_reader.read_yaml(str(path))


def test_the_limit_of_substituted_text_is_exact(monkeypatch: pytest.MonkeyPatch):
    document = {"a": "${env:A}", "b": "${env:A}"}
    monkeypatch.setattr(substitution, "MAX_CHARS", 10)
    assert Substitution(DAY, {"A": "12345"}).apply(document) == {"a": "12345", "b": "12345"}
    with pytest.raises(ValueError, match="after substitution"):
        Substitution(DAY, {"A": "123456"}).apply(document)


def test_even_a_short_value_of_the_environment_is_hidden(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TEST_SHORT", "q7z")
    with pytest.raises(JobError, match="batch_size") as caught:
        job_of(name="tiny", batch_size="${env:TEST_SHORT}")
    assert "q7z" not in str(caught.value)


def test_a_time_of_day_means_its_full_minute():
    assert seconds_until("22:01", START) == 29.75
