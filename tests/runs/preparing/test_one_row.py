"""Test that `plan` and `doctor` build the model and predict a row, and report failures."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import helper, numpy_helper
from PIL import Image
from support.models.onnx_files import FLOAT, make_model, value
from support.runs.cli import pipeline, write_job

from pipeline.commit.layout import Layout
from pipeline.core.errors import JobError
from pipeline.job.job import Job
from pipeline.job.reading.loader import read_job
from pipeline.report.recorder import RunRecorder
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.preparing.one_row import Preview, preview_row
from pipeline.runs.preparing.prepare import prepare
from pipeline.storage.store import Store

pytestmark = pytest.mark.no_ray

Colour = tuple[int, int, int]
MAGENTA, CYAN, RED, BLACK = (255, 0, 255), (0, 255, 255), (200, 10, 10), (0, 0, 0)
"""`models:deadly` crashes over the first and hangs over the second."""


def make_job(folder: Path, colours: list[Colour | bytes], **sections: Any) -> Job:
    """A job over images of one colour, or over files of these bytes."""
    (folder / "in").mkdir()
    for index, colour in enumerate(colours):
        path = folder / "in" / f"{index}.png"
        if isinstance(colour, bytes):
            path.write_bytes(colour)
        else:
            Image.new("RGB", (40, 40), colour).save(path)
    source = {"uri": str(folder / "in"), "format": "images"}
    path = write_job(folder / "job.yaml", source, str(folder / "out"), **sections)
    return read_job(path, date=dt.date(2026, 11, 24))


def attempt(job: Job) -> Preview:
    layout, store = Layout(job.sink.partition), Store(job.sink.uri)
    options = RunOptions(allow_import=("models",))
    run = RunContext(job, options, store, layout, RunRecorder("r", layout.name))
    return preview_row(job, *prepare(run))


def model(factory: str, **fields: Any) -> dict[str, Any]:
    base = {"factory": f"models:{factory}", "labels": models.LABELS, **fields}
    return {key: value for key, value in base.items() if value is not None}


@pytest.mark.parametrize(
    "before", [[b"no image"], pytest.param([b"no image", MAGENTA], marks=pytest.mark.slow)]
)
def test_plan_shows_the_first_row_that_can_be_read_and_does_not_crash(
    before: list[Any], tmp_path: Path
) -> None:
    make_job(tmp_path, [*before, RED], model=model("deadly"))
    command = ("plan", str(tmp_path / "job.yaml"), "--json")
    tried = pipeline(*command).json["model"]["tried"]
    assert tried == f'ok: 1 row ({len(before)}.png) -> label "red" 0.99, 5 outputs, 5 labels'
    assert pipeline(*command, "--no-try").json["model"]["tried"] is None
    assert not (tmp_path / "out").exists(), "nothing is written"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("colour", "fields", "words"),
    [
        (RED, model("wide"),
         "row 0.png: model_error: .*the model has 6 outputs, model.labels 5"),
        (RED, model("colours", labels=None, task="embed", embedding_dim=1),
         "the model has 5 outputs, model.embedding_dim is 1$"),
        (RED, model("channels", labels=None, task="raw", postprocess="models:broken",
                    outputs=[{"name": "means", "shape": [3]}]), "RuntimeError: boom in my code"),
        (RED, model("counting"), "models:counting: cannot be built: KeyError: 'TEST_MODEL_LOADS'"),
        (BLACK, model("fussy"),
         r"model_error: ValueError: too dark to look at \(models.py line \d+\)$"),
        (MAGENTA, model("deadly"), "row 0.png: its process was ended by SIGSEGV"),
        (CYAN, model("deadly"), "row 0.png: no result after 3 s"),
        (RED, model("unloadable"), "cannot be loaded: .*SIGSEGV"),
    ],
)  # fmt: skip
def test_a_failure_of_every_row_is_an_error_of_the_job_with_its_cause(
    colour: Colour, fields: dict[str, Any], words: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("TEST_MODEL_LOADS", raising=False)
    limit_s = 3 if colour == CYAN else 60
    with pytest.raises(JobError, match=words) as caught:
        attempt(make_job(tmp_path, [colour], model=fields, run={"row_timeout_s": limit_s}))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_a_model_may_take_longer_to_build_again_than_a_row(tmp_path: Path) -> None:
    job = make_job(tmp_path, [RED], model=model("unseeded"), run={"row_timeout_s": 1e-6})
    with pytest.raises(JobError, match="tensors differ each time that it is built"):
        attempt(job)


def features_job(
    folder: Path, columns: dict[str, Any], features: list[Any], fields: dict[str, Any],
    **sections: Any,
) -> str:  # fmt: skip
    (folder / "in").mkdir()
    pq.write_table(pa.table(columns), folder / "in" / "a.parquet")
    source = {"uri": str(folder / "in"), "format": "parquet", "features": features}
    return write_job(
        *(folder / "job.yaml", source, str(folder / "out")),
        model=fields,
        transform=None,
        **sections,
    )


def onnx_job(folder: Path, nodes: list[Any], *initializers: Any, **sections: Any) -> Job:
    """A job over a row of features and an .onnx file of these nodes, from `x` to `y`."""
    outputs = [value("y", FLOAT, ["batch", 2])]
    made = make_model(nodes, [value("x", FLOAT, ["batch", 2])], outputs, initializers)
    onnx.save(made, folder / "m.onnx")
    fields = {"path": str(folder / "m.onnx"), "task": "embed"}
    path = features_job(folder, {"a": [1.0], "b": [2.0]}, ["a", "b"], fields, **sections)
    return read_job(path, date=dt.date(2026, 11, 24))


@pytest.mark.slow
def test_a_graph_that_takes_more_memory_than_a_trial_may_is_an_error_of_the_job(tmp_path: Path):
    wide = numpy_helper.from_array(np.array([200_000_000, 1, 2]), "wide")  # 3 GiB
    nodes = [
        helper.make_node("Expand", ["x", "wide"], ["many"]),
        helper.make_node("ReduceMax", ["many"], ["y"], axes=[0], keepdims=0),
    ]
    job = onnx_job(tmp_path, nodes, wide, run={"trial_mib": 700})
    with pytest.raises(JobError, match=r"took more than 700 MiB \(run.trial_mib\)") as caught:
        attempt(job)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_names_in_a_model_file_do_not_reach_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    name = "\x1b]0;T\x07\n2026-01-01 00:00:00,000 ERROR forged line"
    seven = numpy_helper.from_array(np.array([7, 2]), "seven")
    nodes = [
        helper.make_node("Reshape", ["x", "seven"], ["bad"], name=name),
        helper.make_node("Identity", ["bad"], ["y"]),
    ]
    with pytest.raises(JobError, match="Reshape") as caught:
        attempt(onnx_job(tmp_path, nodes, seven))
    assert str(caught.value).isprintable()
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_if_no_row_can_be_read_the_model_is_still_built(tmp_path: Path) -> None:
    preview = attempt(make_job(tmp_path, [b"no image"] * 3, model=model("untrained")))
    assert preview.status == "unknown"
    assert preview.message.startswith("no row could be read (0.png: unidentified: ")
    assert "its parameters are random" in preview.message


@pytest.mark.slow
def test_a_row_of_features_is_predicted_too(tmp_path: Path) -> None:
    fields = model("sums", labels=None, task="regress", targets=["total", "largest"])
    columns = {"a": [None, 2.0], "b": [1.0, 3.0]}
    path = features_job(tmp_path, columns, ["a", "b"], fields)
    preview = attempt(read_job(path, date=dt.date(2026, 11, 24)))
    assert str(preview) == "ok: 1 row (a.parquet#1) -> total 5, largest 3"


@pytest.mark.slow
def test_a_vector_that_does_not_fit_is_refused_with_both_lengths(tmp_path: Path) -> None:
    features = ["a", {"column": "b", "categories": ["x", "y", ""]}]
    fields = model("sums_of_two", labels=None, task="regress", targets=["total", "largest"])
    path = features_job(tmp_path, {"a": [1.0, 2.0], "b": ["x", "y"]}, features, fields)
    with pytest.raises(JobError, match=r"shapes cannot be multiplied \(1x4 and 2x2\)"):
        attempt(read_job(path, date=dt.date(2026, 11, 24)))
    facts = pipeline("plan", path, "--no-try", "--json").json["input"]
    assert (facts["num_features"], facts["features"]) == (4, ["a", "b=x", "b=y", "b=''"])
    shown = pipeline("plan", path, "--no-try").stdout
    assert "4: a, b=x, b=y, b=''" in shown
