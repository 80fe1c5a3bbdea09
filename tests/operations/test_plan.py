"""`pipeline plan` for texts."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from support.models import onnx_files
from support.models.snapshots import TEXTS, make_snapshot

from pipeline.core.errors import JobError
from pipeline.job.job import Job
from pipeline.operations.plan import plan
from pipeline.report.showing.printed import render_document

pytestmark = pytest.mark.usefixtures("without_ray_here")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_snapshot(tmp_path_factory.mktemp("model") / "bert", "bert", pooling="cls")


def job_of(folder: Path, model: dict[str, Any], **sections: Any) -> Job:
    source = folder / "in"
    source.mkdir(exist_ok=True)
    pq.write_table(pa.table({"text": list(TEXTS)}), source / "texts.parquet")
    return Job.model_validate(
        {
            "source": {"uri": str(source), "format": "parquet", "text_column": "text"},
            "model": model,
            "sink": {"uri": str(folder / "out")},
            **sections,
        }
    )


def test_a_plan_shows_the_settings_of_the_model_directory(tmp_path: Path, directory: Path):
    job = job_of(tmp_path, {"path": str(directory)})
    planned = plan(job, tries=False)
    model = planned["model"]
    assert (model["name"], model["task"], model["embedding_dim"]) == ("BertModel", "embed", 32)
    assert (model["max_tokens"], model["batch_size"], model["batch_tokens"]) == (64, 256, 1024)
    read = {line["file"]: line["says"] for line in model["read_from_directory"]}
    assert "BertModel" in read["config.json"]
    assert "pooling cls" in read["modules.json"]
    assert "64 tokens" in read["tokenizer.json"]
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(render_document(planned))
    assert "pooling cls" in console.file.getvalue()


@pytest.mark.slow
def test_a_plan_tries_one_text(tmp_path: Path, directory: Path):
    job = job_of(tmp_path, {"path": str(directory), "batch_tokens": 512})
    model = plan(job)["model"]
    assert model["tried"].startswith("ok: 1 row")
    assert model["tried"].endswith("tokens")
    assert model["batch_tokens"] == 512


def test_int8_is_planned_for_texts(tmp_path: Path, directory: Path):
    model = {"path": str(directory), "runtime": "onnxruntime", "precision": "int8"}
    section = plan(job_of(tmp_path, model), tries=False)["model"]
    assert (section["runtime"], section["precision"]) == ("onnxruntime", "int8")


def test_int8_is_refused_for_an_onnx_file(tmp_path: Path):
    path = onnx_files.save(onnx_files.features_model(), tmp_path / "m.onnx")
    (tmp_path / "in").mkdir()
    names = [f"x{number}" for number in range(onnx_files.NUM_FEATURES)]
    pq.write_table(pa.table({name: [1.0] for name in names}), tmp_path / "in" / "rows.parquet")
    source = {"uri": str(tmp_path / "in"), "format": "parquet", "features": tuple(names)}
    model = {"path": str(path), "runtime": "onnxruntime", "precision": "int8", "task": "embed"}
    with pytest.raises(JobError, match=r"model\.precision = 'int8': an \.onnx file.*quantised"):
        plan(job_of(tmp_path, model, source=source), tries=False)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("max_truncated_pct", 1.0, "applies to texts only.*'features'; leave it out"),
        ("truncated_mode", "fail", "applies to texts only.*'features'; leave it out"),
        ("max_repeating_pct", 1.0, "applies to task 'generate' only.*'classify'"),
        ("repeating_mode", "fail", "applies to task 'generate' only.*'classify'"),
    ],
)
def test_a_gate_is_refused_for_rows_that_it_cannot_judge(
    tmp_path: Path, field: str, value: Any, words: str
):
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"x": [1.0, 2.0]}), tmp_path / "in" / "rows.parquet")
    source = {"uri": str(tmp_path / "in"), "format": "parquet", "features": ("x",)}
    model = {"factory": "models:sums", "labels": ("a", "b")}
    job = job_of(tmp_path, model, gates={field: value}, source=source)
    with pytest.raises(JobError, match=rf"gates\.{field}: {words}"):
        plan(job, allow_import=["models"], tries=False)
