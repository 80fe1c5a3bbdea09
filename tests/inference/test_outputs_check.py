"""Logits and probabilities are never taken for each other: where nothing says it, the job must.

The same net gives logits, or the softmax or sigmoid of them: published scores must be the same.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from support.runs import predicting
from support.runs.jobs import job_of

from pipeline.core.errors import JobError
from pipeline.core.figures import Counters
from pipeline.inference.engines.torch_engine import TorchEngine
from pipeline.models.agreement import AgreementLimits
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import PredictorConfig
from pipeline.storage.store import Store

DARK = predicting.images(40) // 2
BRIGHT, WHITE = DARK + 128, np.full_like(DARK, 255)
LIKELY = {"factory": "support.runs.predicting:likely"}
SIGMOIDS = {"factory": "support.runs.predicting:likely", "args": {"function": "sigmoid"}}
LOGITS_OF = {"factory": "support.runs.predicting:convolved"}
MIXED = {"factory": "support.runs.predicting:likely", "args": {"from_level": 0.49}}
"""Probabilities of dark images, logits of bright ones."""
ALL = {"task": "multilabel", "min_score": 0.0}
KNOWN = {"scores": "probabilities"}
WRITE = r"^model\.scores: .* 'logits'"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def predictor(
    store: Store | None, limits: AgreementLimits | None = None, batch_size: int = 8, **model: Any
) -> TorchEngine:
    """A predictor of a run into an output; None: of a trial."""
    job = job_of({"labels": models.LABELS, **model}, transform=models.TRANSFORM)
    spec, run = resolve_model(job, ["support"]), uuid.uuid4().hex
    columns = predicting.PASS_THROUGH
    return TorchEngine(PredictorConfig(spec, batch_size, 0, 1, columns, limits, run, store))


def predicted(model: TorchEngine, pixels: np.ndarray) -> tuple[list[dict[str, Any]], Counters]:
    counters: Counters = {}
    table = model.predict(predicting.rows_of(pixels), counters)
    return table.drop_columns(["row_id", "uri", "n"]).to_pylist(), counters


def scores(rows: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """Label ids and scores of all entries, row after row."""
    entries = [entry for row in rows for name in ("top_k", "labels") for entry in row.get(name, [])]
    assert entries
    return [(entry["label_id"], entry["score"]) for entry in entries]


@pytest.mark.parametrize("size", [1, 3, 40])
@pytest.mark.parametrize(("likely", "task"), [(LIKELY, {}), (SIGMOIDS, ALL)])
def test_declared_probabilities_are_published_as_they_are(
    store: Store, likely: dict[str, Any], task: dict[str, Any], size: int
):
    expected, _ = predicted(predictor(store, **LOGITS_OF, **task), DARK)
    table, _ = predicted(predictor(store, None, size, **likely, **task, **KNOWN), DARK)
    np.testing.assert_allclose(scores(table), scores(expected), atol=1e-6)


@pytest.mark.parametrize(
    ("model", "pixels"),
    [(LIKELY, DARK), (LIKELY, DARK[:1]), (SIGMOIDS | ALL, DARK), (MIXED, DARK)],
    ids=["softmax", "one row", "sigmoid", "of some rows"],
)
def test_first_rows_that_look_like_probabilities_end_the_run(
    store: Store, model: dict[str, Any], pixels: np.ndarray
):
    with pytest.raises(JobError, match=WRITE):
        predicted(predictor(store, **model), pixels)
    with pytest.raises(JobError, match=WRITE):  # before a run, too
        predicted(predictor(None, **model), pixels)


def test_too_few_values_end_a_run_and_no_trial(store: Store):
    with pytest.raises(JobError, match=r"1 rows are too few .* write 'logits' or 'probabilities'"):
        predicted(predictor(store, **SIGMOIDS, **ALL), DARK[:1])
    trial = predictor(None, **SIGMOIDS, **ALL)
    predicted(trial, DARK[:1])
    with pytest.raises(JobError, match=WRITE):
        predicted(trial, DARK)


def test_one_row_that_looks_so_by_chance_among_logits_changes_nothing(store: Store):
    rows = np.concatenate([BRIGHT, DARK[:1]])
    expected = predicted(predictor(store, scores="logits", **MIXED), rows)[0]
    assert predicted(predictor(store, **MIXED), rows)[0] == expected


@pytest.mark.parametrize("pixels", [BRIGHT, np.concatenate([DARK, BRIGHT[:1]])])
def test_declared_probabilities_that_are_none_end_the_run(store: Store, pixels: np.ndarray):
    row = 0 if pixels is BRIGHT else len(DARK)
    with pytest.raises(JobError, match=rf"^model\.scores: .* the outputs of row r{row} do not"):
        predicted(predictor(store, **MIXED, **KNOWN), pixels)


def test_outputs_that_the_job_calls_logits_are_logits(store: Store):
    rows = predicted(predictor(store, **LIKELY, scores="logits"), DARK)[0]
    assert max(row["score"] for row in rows) < 0.41  # softmax of shares of five labels


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_reference_check_compares_probabilities(store: Store, precision: str):
    limits = AgreementLimits(max_score_diff=0.02, min_cosine=0.99, max_relative_error=0.1)
    model = predictor(store, limits, **LIKELY, **KNOWN, precision=precision)
    counted = predicted(model, DARK)[1]["reference_check"]
    assert counted["num_rows"] == counted["num_agreed"] > 0


def test_golden_rows_and_measurements_see_what_the_task_keeps_and_no_more():
    model = predictor(None, **LIKELY, **KNOWN)
    inputs = model._config.spec.input.arrays(predicting.rows_of(DARK))
    reduced, expected = model.reduce(inputs), predictor(None, **LOGITS_OF).reduce(inputs)
    assert set(reduced) == set(expected) == {"label_id", "score"}
    np.testing.assert_allclose(reduced["score"], expected["score"], atol=1e-6)


def test_rows_that_are_not_finite_are_quarantined_and_say_nothing_of_the_outputs(store: Store):
    rows = predicted(predictor(store, **LIKELY), WHITE[:9])[0]
    assert {row["error"] for row in rows} == {"non_finite"}
    pixels = np.concatenate([WHITE[:1], DARK, WHITE[:1]])
    with pytest.raises(JobError, match=WRITE):
        predicted(predictor(store, **LIKELY), pixels)
    table = predicted(predictor(store, **LIKELY, **KNOWN), pixels)[0]
    assert [row["error"] for row in table] == ["non_finite", *[None] * len(DARK), "non_finite"]
    expected = predicted(predictor(None, **LOGITS_OF), DARK)[0]
    np.testing.assert_allclose(scores(table[1:-1]), scores(expected), atol=1e-6)
