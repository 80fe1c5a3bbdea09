"""Code of another distribution: its errors are one line with file and line, and its text counts.

The distribution is real: a module on the path, and metadata with entry points beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import pyarrow as pa
import pytest
import toy_input
import toy_package
import toy_task
import yaml
from support.models.tiny_tokenizer import make_tokenizer
from support.runs.checkout import ROOT
from support.runs.jobs import job_of

from pipeline.core import registry
from pipeline.core.errors import JobError
from pipeline.core.failures import failure_columns
from pipeline.core.registry import SOURCES, TASKS
from pipeline.core.schema import IMAGE, IMAGE_FIELDS, ROW_ID, URI
from pipeline.core.user_code import code_digest, extension_errors, module_of
from pipeline.execution.stages import Preprocessing
from pipeline.inference.result_table import to_table
from pipeline.job.job import Job
from pipeline.models.resolving.resolve import require_stage_names
from pipeline.models.tasks.base import TaskSpec
from pipeline.operations.plan import plan
from pipeline.runs.builders import make_reader
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.preparing.prepare import prepare
from pipeline.runs.staleness import what_changed
from pipeline.sources.reader import read_slices

EXAMPLE = (ROOT / "examples" / "text_source" / "csv_texts.py").read_text()
OPTIONS = RunOptions(allow_import=("models",))


def forget() -> None:
    """Forget `csvkit` as it was installed before, as another process has not seen it."""
    sys.modules.pop("csvkit", None)
    registry.load.cache_clear()
    code_digest.cache_clear()


@pytest.fixture(autouse=True)
def _installed_anew() -> Iterator[None]:
    forget()
    yield
    forget()


def csv_job(folder: Path, monkeypatch: pytest.MonkeyPatch, *changes: tuple[str, str]) -> Job:
    """A job over two texts in CSV, read by the example's source with some changes."""
    code = EXAMPLE
    for old, new in changes:
        assert old in code
        code = code.replace(old, new)
    site = folder / "site-packages"
    if not site.exists():
        toy_package.install(site, {SOURCES: {"csv_texts": "csvkit:FORMAT"}}, "csvkit")
        monkeypatch.syspath_prepend(str(site))
    (site / "csvkit.py").write_text(code)
    if not (folder / "in").exists():
        (folder / "in").mkdir()
        (folder / "in" / "a.csv").write_text("id,body\n1,the red cat\n2\n")
    make_tokenizer().save(str(folder / "tokenizer.json"))
    return job_of(
        {"factory": "models:mentions", "labels": models.LABELS},
        {"uri": str(folder / "in"), "format": "csv_texts", "text_column": "body"},
        sink={"uri": str(folder / "out")},
        text={"tokenizer": str(folder / "tokenizer.json"), "max_tokens": 16},
    )


def line_of(folder: Path, words: str) -> int:
    lines = (folder / "site-packages" / "csvkit.py").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if words in line)


def read_all(job: Job) -> list[dict[str, Any]]:
    plan, _ = prepare(RunContext.of(job, OPTIONS))
    reader = make_reader(job, plan)
    starts = frozenset(key.start for unit in plan.units for key in unit.slices())
    slices = (packed for unit in plan.units for packed in read_slices(reader, unit, starts))
    return [row for _, _, table in slices for row in table.to_pylist()]


def test_the_example_reads_texts_and_fails_a_row_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = read_all(csv_job(tmp_path, monkeypatch))
    cells = [(row["row_id"], row["_text"], row["error"]) for row in rows]
    assert cells == [("a.csv#0", "the red cat", None), ("a.csv#1", None, "null_input")]


def test_an_error_while_an_own_source_checks_its_job_is_one_line_with_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(JobError) as caught:
        csv_job(tmp_path, monkeypatch, ("source.text_column is None", "{}['text'] is None"))
    at = line_of(tmp_path, "{}['text']")
    assert str(caught.value).startswith(f"source 'csv_texts' (csvkit.py line {at}): KeyError: 'te")


MADE = "yield Rows(make_rows(reader, ids"
BROKEN = [
    (
        "found.columns",
        '{"_text": ["x"] * len(ids)}',
        MADE,
        "texts must be bytes (UTF-8), _text has",
    ),
    ("found.columns", "{}", MADE, "column '_text' is missing, there are none"),
    ("found.columns", '{"_text": [b"x"]}', MADE, "_text has 1 values for 2 row ids"),
    ("[texts[line] for", "[{}['body'] for", "{}['body']", "KeyError: 'body'"),
    ("return Measured(tuple", "return Measured(1 + tuple", "1 + tuple", "TypeError: unsupported"),
]
"""What of the example is changed, the line at fault, and what is said of it."""


@pytest.mark.parametrize(("old", "new", "at", "words"), BROKEN, ids=range(len(BROKEN)))
def test_an_error_of_an_own_source_is_one_line_with_file_and_line(
    old: str, new: str, at: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = csv_job(tmp_path, monkeypatch, (old, new))
    with pytest.raises(JobError) as caught:
        read_all(job)
    where = f"source 'csv_texts' (csvkit.py line {line_of(tmp_path, at)}): "
    assert str(caught.value).startswith(where + words)
    assert str(caught.value).endswith("; --debug shows all")


@pytest.mark.slow
@pytest.mark.usefixtures("without_ray_here")
def test_plan_ends_with_the_error_of_an_own_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It reads the first row in a process of its own."""
    job = csv_job(tmp_path, monkeypatch, ("found.columns", '{"_text": ["x"] * len(ids)}'))
    with pytest.raises(
        JobError, match=r"^source 'csv_texts' \(csvkit.py line \d+\): texts must be"
    ):
        plan(job, allow_import=OPTIONS.allow_import)


def test_changed_code_of_an_own_source_is_another_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = csv_job(tmp_path, monkeypatch)
    before, _ = prepare(RunContext.of(job, OPTIONS))
    again, _ = prepare(RunContext.of(job, OPTIONS))
    assert again.fingerprint == before.fingerprint
    forget()
    job = csv_job(tmp_path, monkeypatch, ("uris * len(ids)", "len(ids) * uris"))
    after, _ = prepare(RunContext.of(job, OPTIONS))
    assert after.fingerprint != before.fingerprint
    change = what_changed(before.fingerprint_parts, after.fingerprint_parts)
    assert change == "the code of source csv_texts"


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({}, r"columns\(\) gives no spread, which fields\(\) declares"),
        ({"spread": pa.array(["x"])}, "ArrowInvalid: Failed to parse"),
    ],
)
def test_columns_that_an_own_task_does_not_declare_are_told(
    columns: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    points = {TASKS: {toy_task.NAME: "toy_task:Spread"}}
    monkeypatch.syspath_prepend(str(toy_package.install(tmp_path / "site", points)))
    monkeypatch.setattr(toy_task.Spread, "columns", lambda *_: columns)
    task = toy_task.Spread(TaskSpec(toy_task.NAME))
    rows = pa.table({ROW_ID: ["a"], URI: ["a"]})
    with pytest.raises(JobError, match=f"^task 'spread'.*: {words}"):
        to_table(task, pa.schema([]), rows, {"spread": np.zeros(1)}, np.ones(1, bool), [None])


def test_an_error_of_an_own_input_is_one_line_with_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    site = toy_package.install(tmp_path / "site", toy_input.POINTS)
    monkeypatch.syspath_prepend(str(site))
    rows = pa.table(
        {ROW_ID: ["a"], IMAGE: pa.array([None], pa.binary()), **failure_columns([None])}
    )
    prepare = Preprocessing(toy_input.ToyInput(), 1 << 20, 1 << 20, IMAGE_FIELDS)
    with pytest.raises(JobError, match=r"^input 'toy' \(toy_input.py line \d+\): TypeError: "):
        prepare({}, rows)


def test_what_this_distribution_brings_has_no_digest_of_code():
    """Numbers of semantics say what changed of it."""
    assert code_digest(SOURCES, "parquet") == ""
    assert module_of(SOURCES, "parquet") == ""


def test_errors_of_built_in_code_and_of_stores_stay_what_they_are():
    with pytest.raises(KeyError), extension_errors(SOURCES, "parquet"):
        raise KeyError("x")
    with pytest.raises(OSError, match="down"), extension_errors(SOURCES, "csv_texts"):
        raise OSError("down")


def test_the_job_of_the_example_is_short_and_names_what_is_there():
    job = yaml.safe_load((ROOT / "examples" / "text_source" / "job.yaml").read_text())
    assert (ROOT / job["source"]["uri"]).is_file()
    assert (
        f'{job["source"]["format"]} = "csv_texts:FORMAT"'
        in (ROOT / "examples" / "text_source" / "pyproject.toml").read_text()
    )


@pytest.mark.parametrize("stage", ["tokens", "golden", "devices"])
def test_an_input_whose_stage_has_the_name_of_a_figure_is_refused(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(toy_input.ToyInput, "stage_names", (stage,))
    with pytest.raises(JobError, match=f"its stage '{stage}' has the name of a figure"):
        require_stage_names(toy_input.ToyInput())
