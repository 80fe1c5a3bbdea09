"""`import pipeline` gives functions named like commands, and types, and imports little."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.runs.package_source import NAMES

import pipeline
from pipeline.core import errors as core_errors
from pipeline.core.errors import JobError
from pipeline.errors import PipelineError

FUNCTIONS = {
    *("backfill", "diff", "gc", "load_job", "open_output", "plan", "predict"),
    *("retry", "rollback", "run", "status", "stop", "tune", "verify"),
}
TYPES = {"Diff", "Job", "Output", "Partition", "Report"}
SECTIONS: dict[str, Any] = {
    "source": {"uri": "in", "format": "images"},
    "model": {"name": "efficientnet-lite0"},
    "sink": {"uri": "out/${date}"},
}


def test_it_exports_exactly_these_names():
    assert set(pipeline.__all__) == FUNCTIONS | TYPES | {"errors"}
    assert dir(pipeline) == sorted(pipeline.__all__)
    with pytest.raises(AttributeError, match="no attribute 'launch'"):
        pipeline.launch  # noqa: B018  # looked up
    page = pipeline.__doc__ or ""
    assert [name for name in pipeline.__all__ if f"`{name}`" not in page] == []


def test_no_exported_name_is_that_of_a_module():
    """`import pipeline.x` puts the module `x` where an exported `x` was."""
    assert set(pipeline.__all__) & {name.partition(".")[0] for name in NAMES} == {"errors"}


@pytest.mark.slow
def test_every_module_can_be_imported():
    modules = [f"pipeline.{name}" for name in NAMES if name not in ("__main__", "__init__")]
    program = (
        "import importlib, json, sys\n"
        "for name in json.load(sys.stdin): importlib.import_module(name)"
    )
    subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(modules), text=True, check=True
    )


def test_importing_it_imports_nothing_heavy():
    program = (
        "import pipeline, sys;"
        "heavy = {'torch', 'ray', 'pyarrow', 'pydantic', 'pandas', 'numpy', 'fsspec'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_a_function_says_what_it_takes_and_raises(name: str):
    function = getattr(pipeline, name)
    text = inspect.getdoc(function) or ""
    assert "Raises:" in text
    assert [
        argument
        for argument in inspect.signature(function).parameters
        if f"{argument}:" not in text
    ] == []


def test_a_job_is_a_path_a_mapping_or_a_job(tmp_path: Path):
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(SECTIONS))
    top_3 = {"model.top_k": 3}
    loaded = pipeline.load_job(SECTIONS, date="2026-11-24", overrides=top_3)
    for given in (path, str(path)):
        assert pipeline.load_job(given, date="2026-11-24", overrides=top_3) == loaded
        assert pipeline.load_job(given, date="2026-11-24", overrides=["model.top_k=3"]) == loaded
    assert (loaded.model.top_k, loaded.sink.uri) == (3, "out/2026-11-24")
    assert pipeline.load_job(loaded) is loaded
    assert "top_k" not in SECTIONS["model"], "the caller's mapping stays as it was"


NO_PATHS: tuple[Any, ...] = (5, 0.5, [], b"x.yaml", "a\0", "a" * 5_000, object(), {1: 2})


@pytest.mark.parametrize("given", NO_PATHS, ids=lambda value: ascii(value)[:8])
def test_a_value_that_is_no_job_or_output_raises_a_pipeline_error(given: Any):
    for function in (pipeline.load_job, pipeline.run, pipeline.plan):
        with pytest.raises(PipelineError):
            function(given)
    if not isinstance(given, dict):
        for look in (pipeline.open_output, pipeline.verify, pipeline.status, pipeline.diff):
            with pytest.raises(PipelineError) as caught:
                look(given)
            assert "\n" not in str(caught.value)


def test_errors_are_a_module_with_every_error():
    classes = {name for name, value in vars(core_errors).items()
           if isinstance(value, type) and value.__module__ == core_errors.__name__}  # fmt: skip
    assert set(pipeline.errors.__all__) == classes
    assert pipeline.errors.PipelineError is PipelineError


def test_wrong_arguments_raise_one_line():
    with pytest.raises(JobError, match="the job is already loaded: pass date and overrides"):
        pipeline.load_job(pipeline.load_job(SECTIONS), date="2026-11-24")
    with pytest.raises(JobError, match=r"top_k: write section.field=value"):
        pipeline.load_job(SECTIONS, overrides={"top_k": 3})
    with pytest.raises(JobError, match=r"date 24.11.2026: write YYYY-MM-DD"):
        pipeline.load_job(SECTIONS, date="24.11.2026")
    assert pipeline.errors.JobError.exit_code == 2
