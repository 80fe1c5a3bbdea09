"""Several heads in one pass: each has the columns of its task under its own name."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from models import LABELS, TRANSFORM

from pipeline.core.errors import JobError
from pipeline.core.figures.histograms import measure_numbers
from pipeline.job.job import Job
from pipeline.job.reading.loader import parse_job
from pipeline.models.outputs import OutputError
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import Task
from pipeline.runs.preparing.prepare import job_model

HEADS: dict[str, Any] = {
    "colour": {"task": "classify", "labels": LABELS, "top_k": 2},
    "vector": {"task": "embed", "embedding_dim": 3},
    "other": {"task": "embed", "embedding_dim": 2},
    "tags": {"task": "multilabel", "labels": ["a", "b"], "min_score": 0.3},
    "size": {"task": "regress", "targets": ["w", "h"]},
}
OUTPUTS = {
    "colour": torch.eye(5)[:4] * 3,
    "vector": torch.arange(12.0).reshape(4, 3),
    "other": torch.ones(4, 2),
    "tags": torch.zeros(4, 2),
    "size": torch.arange(8.0).reshape(4, 2),
    "unused": torch.zeros(1),
}
NO_ROWS = pa.table({"row_id": ["a", "b", "c", "d"]})


def job_of(**model: Any) -> Job:
    document = {
        "source": {"uri": "in", "format": "images"},
        "model": {"factory": "models:colours", **model},
        "transform": TRANSFORM,
        "sink": {"uri": "out"},
    }
    return parse_job(document, date=dt.date(2026, 11, 24), origin="test")


def task_of(heads: dict[str, Any]) -> Task:
    job = job_of(heads=heads)
    return make_task(job_model(job, ["models"]).task)


def test_columns_have_the_names_of_the_heads_before_theirs() -> None:
    task = task_of(HEADS)
    arrays = {name: values.numpy() for name, values in task.reduce(OUTPUTS, 4).items()}
    table = pa.table(task.columns(arrays, np.ones(4, bool), NO_ROWS))
    assert table.column_names == [
        *("colour_label", "colour_label_id", "colour_score", "colour_top_k"),
        *("vector_embedding", "other_embedding", "tags_labels", "size_w", "size_h"),
    ]
    assert table["colour_label"].to_pylist() == LABELS[:4]
    assert table["vector_embedding"].to_pylist() == OUTPUTS["vector"].tolist()
    assert [len(found) for found in table["tags_labels"].to_pylist()] == [2] * 4
    assert table["size_h"].to_pylist() == [1, 3, 5, 7]
    counted = measure_numbers(table, task.measured_columns())
    assert {"colour_score", "vector_norm", "other_norm", "tags_num_labels", "tags_score"} <= {
        *counted
    }
    assert "colour: label" in task.describe(table.to_pylist()[0])
    in_order = task.reduce([OUTPUTS[name] for name in HEADS], 4)
    assert all(
        torch.equal(in_order[name], found) for name, found in task.reduce(OUTPUTS, 4).items()
    )


def test_outputs_that_do_not_fit_name_the_head() -> None:
    task = task_of(HEADS)
    for changed, words in (
        ({"vector": torch.ones(4, 2)}, "model.heads.vector: output is "),
        ({"colour": "text"}, "model.heads.colour: output is a str"),
    ):
        with pytest.raises(OutputError, match=words):
            task.reduce({**OUTPUTS, **changed}, 4)
    with pytest.raises(OutputError, match=r"no output 'colour' \(model.heads\); the model has x"):
        task.reduce({"x": torch.ones(4)}, 4)
    with pytest.raises(OutputError, match=r"has 1 outputs, model\.heads has 5 heads"):
        task.reduce((torch.ones(4, 5),), 4)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"task": "heads"}, "task 'heads' needs heads"),
        (
            {"heads": {"a": {"task": "embed", "embedding_dim": 2, "labels": ["x"]}}},
            "heads.a: labels has no effect with task 'embed'",
        ),
        ({"heads": {"a": {"task": "raw"}}}, "heads.a.task = 'raw'"),
        ({"heads": {"a b": {"task": "score"}}}, "'a b' is no name of columns"),
        ({"heads": {"a": {"task": "score"}}, "labels": ["x"]}, "labels has no effect with task"),
        ({"heads": {"a": {"task": "score"}}, "task": "embed"}, "heads has no effect with task"),
    ],
)
def test_heads_that_cannot_be_are_refused(model: dict[str, Any], words: str) -> None:
    with pytest.raises(JobError) as caught:
        job_of(**model)
    assert words in str(caught.value)


def test_heads_without_labels_are_refused_before_anything_starts() -> None:
    with pytest.raises(JobError, match=r"model\.labels: .* brings no class names"):
        task_of({"a": {"task": "classify"}})


def test_jobs_without_heads_keep_their_fingerprints() -> None:
    job = job_of(labels=LABELS)
    spec = job_model(job, ["models"])
    assert "heads" not in spec.task.to_dict()
    assert task_of(HEADS).spec.to_dict()["heads"][1][0] == "vector"
