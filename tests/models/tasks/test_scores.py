"""Test that outputs are taken as logits or probabilities as job, library, file or rows say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models import onnx_files
from support.models.snapshots import make_snapshot, make_timm
from support.runs.jobs import job_of

from pipeline.core.errors import JobError
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec
from pipeline.models.tasks.base import TaskSpec
from pipeline.models.tasks.scores import (
    LOGITS,
    OFF,
    PROBABILITIES,
    SIGMOID,
    SOFTMAX,
    are_probabilities,
    describe_scores,
    scores_of,
)

FIVE = ["a", "b", "c", "d", "e"]
PROMPTS = {"task": "zero_shot", "prompts": ["a cat", "a dog"]}


def resolve(source: dict[str, Any] | None = None, **model: Any) -> ModelSpec:
    source = {"uri": "in", "format": "images", **(source or {})}
    job = job_of(model, source)
    return resolve_model(job)


def of_file(path: Path, **model: Any) -> ModelSpec:
    source = {"format": "parquet", "features": ["x"]}
    return resolve(source, path=str(path), **{"labels": FIVE, **model})


@pytest.mark.parametrize(
    ("family", "model", "scores"),
    [
        ("vit", {}, "logits"),
        ("vit", {"task": "multilabel"}, "logits"),
        ("vit", {"scores": "sigmoid"}, "sigmoid"),
        ("vit", {"layer": "model.classifier"}, "open"),
        ("clip", PROMPTS, "logits"),
        ("siglip", PROMPTS, "sigmoid"),
        ("siglip", {**PROMPTS, "scores": "softmax"}, "logits"),
        ("siglip", {**PROMPTS, "scores": "logits"}, "sigmoid"),
        ("siglip", {"task": "embed"}, "logits"),
    ],
)
def test_of_a_class_of_the_library_it_is_known(
    family: str, model: dict[str, Any], scores: str, tmp_path: Path
):
    head = "image" if family == "vit" else "none"
    path = make_snapshot(tmp_path / "m", family, head)
    assert resolve(path=str(path), **model).task.scores == scores


@pytest.mark.parametrize(
    ("softmax", "model", "scores"),
    [
        (True, {}, "probabilities"),
        (True, {"task": "multilabel"}, "probabilities"),
        (True, {"scores": "logits"}, "logits"),
        (False, {}, "open"),
        (False, {"scores": "probabilities"}, "probabilities"),
        (False, {"task": "multilabel", "scores": "logits"}, "logits"),
        (True, {"task": "regress", "labels": None}, "logits"),
    ],
)
def test_of_a_file_its_end_or_the_job_says_it(
    softmax: bool, model: dict[str, Any], scores: str, tmp_path: Path
):
    path = onnx_files.save(onnx_files.features_model(softmax=softmax), tmp_path / "m.onnx")
    assert of_file(path, **model).task.scores == scores


def test_what_has_no_meaning_is_refused_in_one_line(tmp_path: Path):
    images = str(make_timm(tmp_path / "timm", "vit_tiny_patch16_224", 2, img_size=32))
    texts = str(make_snapshot(tmp_path / "bert", "bert", pooling="mean"))
    as_texts = {"format": "jsonl", "text_column": "text"}
    for expected, source, model in (
        ("gives logits", {}, {"path": images, "scores": "probabilities"}),
        ("independent", {}, {"path": images, "task": "multilabel", "scores": "softmax"}),
        ("no effect with task 'embed'", {}, {"path": images, "task": "embed", "scores": "softmax"}),
        ("against each other", as_texts, {"path": texts, **PROMPTS, "scores": "sigmoid"}),
    ):
        with pytest.raises(JobError) as caught:
            resolve(source, **model)
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "scores" in str(caught.value)


@pytest.mark.parametrize(
    ("off", "num_labels", "adds_up", "result"),
    [
        ([0.0], 2, True, True),
        ([0.003], 2, True, None),
        ([0.003] * 3, 2, True, None),
        ([0.003] * 4, 2, True, True),
        ([0.0] * 99 + [0.006], 2, True, False),
        ([0.0] * 11, 2, False, None),
        ([0.0] * 12, 2, False, True),
        ([0.0], 24, False, True),
        ([0.5], 24, False, False),
    ],
)
def test_rows_are_enough_if_logits_are_not_so_by_chance(
    off: list[float], num_labels: int, adds_up: bool, result: bool | None
):
    assert are_probabilities(np.array(off, np.float32), num_labels, adds_up=adds_up) is result


@pytest.mark.parametrize(("usual", "off"), [(SOFTMAX, [0.5, 0.25, 0.5]), (SIGMOID, [0, 0.25, 0])])
def test_a_row_misses_being_probabilities_by_its_sum_where_labels_exclude_each_other(
    usual: str, off: list[float]
):
    outputs = torch.tensor([[0.75, 0.75], [1.25, -0.25], [0.25, 0.25]])
    _, beside = scores_of(outputs, PROBABILITIES, usual)
    assert beside[OFF].tolist() == off


def test_a_line_says_what_outputs_are():
    assert describe_scores(TaskSpec("classify", scores="open"), "m") is None
    note = describe_scores(TaskSpec("classify", scores="probabilities"), "m")
    assert note == "m gives probabilities: taken as they are"


@pytest.mark.parametrize("are", [PROBABILITIES, LOGITS])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_row_with_one_output_that_is_not_finite_has_no_finite_best(are: str, bad: float):
    outputs = torch.tensor([[0.3, bad, 0.2], [0.3, 0.5, 0.2]])
    scores, _ = scores_of(outputs, are, SIGMOID)
    assert not scores[0].isfinite().all()
    assert scores[1].isfinite().all()
    if are == PROBABILITIES:
        assert scores[0].isnan().all()  # whichever is the best
