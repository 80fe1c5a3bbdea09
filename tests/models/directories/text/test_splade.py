"""Test that sparse vectors of masked language models equal those of sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models.library_cases import Case, require_scores_of_the_library
from support.models.snapshots import TEXT_FAMILIES, TEXTS, change_json, make_snapshot
from support.runs.jobs import SOURCES, job_of
from support.runs.selection import quick_cases

from pipeline.core.errors import JobError
from pipeline.inference.library_check import hold_to_library
from pipeline.models.outputs import OutputError
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.tasks import make_task, sparse
from pipeline.models.tasks.base import TaskSpec

LONG = " ".join(TEXTS * 20)
SPARSE = {"task": "sparse"}


def of_library(path: Path, rows: Any) -> list[dict[str, float]]:
    from sentence_transformers import SparseEncoder

    model = SparseEncoder(str(path), device="cpu")
    vectors = model.encode(list(rows), convert_to_sparse_tensor=False).numpy()
    return [{str(id_): row[id_] for id_ in np.flatnonzero(row)} for row in vectors]


def of_row(row: dict[str, Any]) -> dict[str, float]:
    ids = [entry["token_id"] for entry in row["weights"]]
    assert ids == sorted(set(ids))
    return {str(entry["token_id"]): entry["weight"] for entry in row["weights"]}


def masked(family: str) -> Callable[[Path], Path]:
    return lambda folder: make_snapshot(folder, family, head="masked")


def saved(folder: Path, max_tokens: int | None = None, **settings: str) -> Path:
    """Return a directory as the library saves it."""
    from sentence_transformers import SparseEncoder

    model = SparseEncoder(str(make_snapshot(folder / "plain", "bert", head="masked")))
    if max_tokens is not None:
        model.max_seq_length = max_tokens
    model.save(str(folder / "saved"))
    change_json(folder / "saved" / "1_SpladePooling" / "config.json", **settings)
    return folder / "saved"


def as_older_releases(folder: Path) -> Path:
    path = saved(folder)
    text = (path / "modules.json").read_text()
    old = "sentence_transformers.sparse_encoder.models.MLMTransformer"
    for name in ("base.modules.transformer.Transformer", "models.Transformer"):
        text = text.replace(f"sentence_transformers.{name}", old)
    assert old in text
    (path / "modules.json").write_text(text)
    return path


def case_of(make: Callable[[Path], Path], **model: Any) -> Case:
    return Case(make, of_library, of_row, model, "text")


@pytest.mark.parametrize(
    "family", quick_cases(((family,) for family in TEXT_FAMILIES), lambda family: family == "bert")
)
def test_weights_of_a_masked_language_model_are_those_of_the_library(family: str, tmp_path: Path):
    case = case_of(masked(family), **SPARSE)
    require_scores_of_the_library(case, tmp_path / "m", (*TEXTS, "", LONG))


@pytest.mark.parametrize("make", [saved, as_older_releases, lambda path: saved(path, 12)])
def test_a_directory_of_the_library_runs_without_another_field(
    make: Callable[[Path], Path], tmp_path: Path
):
    require_scores_of_the_library(case_of(make), tmp_path / "m", (*TEXTS, "", LONG))


def test_it_is_held_to_the_library(tmp_path: Path):
    spec = resolve_model(job_of({"path": str(saved(tmp_path))}, SOURCES["text"]))
    assert spec.task.kind == "sparse"
    assert hold_to_library(spec).startswith("sentence-transformers ")


@pytest.mark.parametrize("num_weights", [4, 5])
def test_more_weights_than_are_taken_are_an_error_of_the_model(
    num_weights: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sparse, "MOST", 4)
    task = make_task(TaskSpec("sparse"))
    weights = (torch.arange(8) < num_weights).float().repeat(2, 1)
    arrays = {name: values.numpy() for name, values in task.reduce(weights, 2).items()}
    if num_weights == 4:
        task.check(arrays)
        return
    with pytest.raises(OutputError, match="5 weights above 0, task 'sparse' takes 4 at most"):
        task.check(arrays)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: make_snapshot(path, "bert"), "needs a masked language model, and BertModel"),
        (lambda path: make_snapshot(path, "bert", head="token"), "BertForTokenClassification is"),
        (lambda path: make_snapshot(path, "bert", pooling="mean"), "serves embed, zero_shot"),
        (lambda path: saved(path, pooling_strategy="sum"), "SpladePooling must be the only module"),
        (
            lambda path: saved(path, activation_function="log1p_relu"),
            "and activation_function relu",
        ),
    ],
)
def test_other_directories_are_refused_in_a_line(
    make: Callable[[Path], Path], words: str, tmp_path: Path
):
    with pytest.raises(JobError, match=words) as caught:
        resolve_model(job_of({"path": str(make(tmp_path / "m")), **SPARSE}, SOURCES["text"]))
    assert "\n" not in str(caught.value)
