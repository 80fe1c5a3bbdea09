"""Test that published scores of texts are the library's, where no probe of a run shows it.

These are other runtimes than eager, and tasks whose numbers the library itself does not make. Each
family, task and pooling is held to its library by the check that each run makes
(`tests/inference/test_library_check.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.models.library_cases import (
    NAMES,
    PROMPTS,
    ZERO_SHOT,
    Case,
    Results,
    best,
    embedding,
    made,
    of_encoder,
    of_pipeline,
    require_scores_of_the_library,
)
from support.runs.selection import quick_cases

from pipeline.models.directories.text.zero_shot import SCALE

_NLI = {0: "contradiction", 1: "neutral", 2: "entailment"}
NLI = {"id2label": _NLI, "label2id": {label: number for number, label in _NLI.items()}}


def of_nli(path: Path, rows: Any) -> Results:
    from transformers import pipeline

    classify = pipeline("zero-shot-classification", model=str(path), device="cpu")
    answers = classify(list(rows), list(PROMPTS), hypothesis_template="{}")
    return [dict(zip(answer["labels"], answer["scores"], strict=True)) for answer in answers]


def of_similarities(path: Path, rows: Any) -> Results:
    from sentence_transformers import SentenceTransformer, util

    model = SentenceTransformer(str(path), device="cpu")
    cosines = util.cos_sim(model.encode(list(rows)), model.encode(list(PROMPTS)))
    scores = (SCALE * cosines).softmax(1).tolist()
    return [dict(zip(PROMPTS, row, strict=True)) for row in scores]


CASES = {
    "classify": Case(
        made("bert", "sequence", id2label=NAMES),
        of_pipeline("text-classification", top_k=None),
        best,
    ),
    "embed": Case(made("modernbert", pooling="mean", normalize=True), of_encoder, embedding),
    "zero_shot by an encoder": Case(made("bert", pooling="cls"), of_similarities, best, ZERO_SHOT),
    "zero_shot by entailment": Case(made("bert", "sequence", **NLI), of_nli, best, ZERO_SHOT),
}


@pytest.mark.filterwarnings("ignore")  # of the exporters of runtimes
@pytest.mark.parametrize(
    ("name", "runtime"),
    quick_cases(
        [(name, runtime) for name in CASES for runtime in ("eager", "onnxruntime", "openvino")],
        lambda name, runtime: runtime == "eager" or (name, runtime) == ("classify", "onnxruntime"),
    ),
)
def test_scores_are_those_of_the_library(name: str, runtime: str, tmp_path: Path):
    case = CASES[name]
    model = {**case.model, "runtime": runtime}
    tolerance = 1e-5 if runtime == "eager" else 1e-3
    case = case._replace(model=model, tolerance=tolerance)
    require_scores_of_the_library(case, tmp_path / "model")
