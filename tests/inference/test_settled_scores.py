"""What a model's outputs are is settled once, by the first rows, and all later rows are held to it.

The same net gives logits, or the softmax or sigmoid of them: published scores must be the same.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from support.runs import predicting
from support.runs.jobs import job_of

from pipeline.core.errors import InfraError, JobError
from pipeline.core.figures.counters import Counters
from pipeline.core.figures.slice_figures import SliceFigures
from pipeline.inference.engines.torch_engine import TorchEngine
from pipeline.inference.settled_scores import scores_path
from pipeline.models.agreement import AgreementLimits
from pipeline.models.spec import PredictorConfig
from pipeline.models.tasks.scores import LOGITS, PROBABILITIES
from pipeline.runs.preparing.prepare import job_model
from pipeline.storage.store import Store

DARK = predicting.images(40) // 2
BRIGHT, WHITE = DARK + 128, np.full_like(DARK, 255)
LIKELY = {"factory": "support.runs.predicting:likely"}
SIGMOIDS = {"factory": "support.runs.predicting:likely", "args": {"function": "sigmoid"}}
LOGITS_OF = {"factory": "support.runs.predicting:convolved"}
MIXED = {"factory": "support.runs.predicting:likely", "args": {"from_level": 0.49}}
"""Probabilities of dark images, logits of bright ones."""
ALL = {"task": "multilabel", "min_score": 0.0}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def predictor(
    store: Store | None, limits: AgreementLimits | None = None, batch_size: int = 8, **model: Any
) -> TorchEngine:
    """A predictor of a run into an output; None: what it settles is not stored."""
    job = job_of({"labels": models.LABELS, **model}, transform=models.TRANSFORM)
    spec = job_model(job, ["support"])
    return TorchEngine(
        PredictorConfig(
            spec,
            batch_size,
            0,
            1,
            predicting.PASS_THROUGH,
            limits,
            uuid.uuid4().hex,
            store,
            scores_path=scores_path(spec) if store else None,
        )
    )


def predicted(model: TorchEngine, pixels: np.ndarray) -> tuple[list[dict[str, Any]], Counters]:
    counters: Counters = {}
    table = model.predict(predicting.rows_of(pixels), counters)
    return table.drop_columns(["row_id", "uri", "n"]).to_pylist(), counters


def scores(rows: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """Label ids and scores of all entries, row after row."""
    entries = [entry for row in rows for name in ("top_k", "labels") for entry in row.get(name, [])]
    assert entries
    return [(entry["label_id"], entry["score"]) for entry in entries]


def decision(store: Store) -> str:
    [file] = store.list_files("_control/scores")
    return str(json.loads(store.read_bytes(file.path))["scores"])


@pytest.mark.parametrize(("likely", "task"), [(LIKELY, {}), (SIGMOIDS, ALL)])
def test_probabilities_are_published_as_they_are(
    store: Store, likely: dict[str, Any], task: dict[str, Any]
):
    expected, counted = predicted(predictor(store, **LOGITS_OF, **task), DARK)
    assert SliceFigures.from_json(counted).probable_rows == 0
    store = Store(store.url("other"))
    found, counted = predicted(predictor(store, **likely, **task), DARK)
    np.testing.assert_allclose(scores(found), scores(expected), atol=1e-6)
    assert SliceFigures.from_json(counted).probable_rows == len(DARK)
    assert decision(store) == PROBABILITIES


def test_the_first_actor_decides_for_all(store: Store):
    predicted(predictor(store, **MIXED), DARK)
    with pytest.raises(
        JobError, match=r"^model\.scores: the outputs of row r0 are no prob.* 'logi"
    ):
        predicted(predictor(store, **MIXED), BRIGHT)
    assert decision(store) == PROBABILITIES


def test_rows_of_one_actor_are_held_to_its_first(store: Store):
    model = predictor(store, **MIXED)
    predicted(model, DARK)
    with pytest.raises(JobError, match="those of the first rows do"):
        predicted(model, np.concatenate([DARK[:10], BRIGHT[:1]]))


def test_where_logits_came_first_probabilities_end_the_run(store: Store):
    predicted(predictor(store, **MIXED), BRIGHT)
    assert decision(store) == LOGITS
    with pytest.raises(JobError, match="8 rows of outputs look like probabilities"):
        predicted(predictor(store, **MIXED), DARK)


def test_one_row_that_looks_so_by_chance_changes_nothing(store: Store):
    predicted(predictor(store, **MIXED), BRIGHT)
    expected = predicted(predictor(None, scores="logits", **MIXED), DARK[:1])[0]
    assert predicted(predictor(store, **MIXED), DARK[:1])[0] == expected


def test_too_few_values_settle_nothing(store: Store):
    model = predictor(store, **SIGMOIDS, **ALL)
    with pytest.raises(JobError, match=r"1 rows are too few .* write 'logits' or 'probabilities'"):
        predicted(model, DARK[:1])
    assert not store.list_files("_control/scores")
    told = predictor(store, **SIGMOIDS, **ALL, scores="probabilities")
    found = predicted(told, DARK[:1])[0]
    expected = predicted(predictor(None, **LOGITS_OF, **ALL), DARK[:1])[0]
    np.testing.assert_allclose(scores(found), scores(expected), atol=1e-6)


def test_one_row_that_adds_up_is_enough(store: Store):
    found = predicted(predictor(store, **LIKELY), DARK[:1])[0]
    expected = predicted(predictor(None, **LOGITS_OF), DARK[:1])[0]
    np.testing.assert_allclose(scores(found), scores(expected), atol=1e-6)


def test_the_job_settles_it(store: Store):
    with pytest.raises(JobError, match=r"^model\.scores: .* as the job or the file says"):
        predicted(predictor(store, **LOGITS_OF, scores="probabilities"), DARK)
    rows = predicted(predictor(store, **LIKELY, scores="logits"), DARK)[0]
    assert max(row["score"] for row in rows) < 0.41  # softmax of shares of five labels
    assert not store.list_files("_control/scores")


def test_any_size_of_batch_gives_the_same(store: Store):
    results = [
        predicted(predictor(Store(store.url(str(size))), batch_size=size, **LIKELY), DARK)[0]
        for size in (1, 3, 40)
    ]
    np.testing.assert_allclose(scores(results[0]), scores(results[2]), atol=1e-6)
    np.testing.assert_allclose(scores(results[1]), scores(results[2]), atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_reference_check_uses_what_is_settled(store: Store, precision: str):
    limits = AgreementLimits(max_score_diff=0.02, min_cosine=0.99, max_relative_error=0.1)
    model = predictor(store, limits, **LIKELY, precision=precision)
    counted = predicted(model, DARK)[1]["reference_check"]
    assert counted["rows_in"] == counted["rows_out"] > 0


def test_golden_rows_and_measurements_see_the_same(store: Store):
    """`Engine.reduce` settles as `predict` does, and returns what the task keeps and no more."""
    model = predictor(None, **LIKELY)
    inputs = model._config.spec.input.arrays(predicting.rows_of(DARK))
    reduced = model.reduce(inputs)
    expected = predictor(None, **LOGITS_OF).reduce(inputs)
    assert set(reduced) == set(expected) == {"label_id", "score"}
    np.testing.assert_allclose(reduced["score"], expected["score"], atol=1e-6)


def test_a_damaged_decision_is_an_error_of_the_store(store: Store):
    predicted(predictor(store, **LIKELY), DARK)
    [file] = store.list_files("_control/scores")
    for data in (b"{", b'{"scores": "maybe"}', b"[]"):
        store.put(file.path, data)
        with pytest.raises(InfraError, match="damaged"):
            predicted(predictor(store, **LIKELY), DARK)


def test_rows_that_are_not_finite_are_quarantined_and_settle_nothing(store: Store):
    model = predictor(store, **LIKELY)
    rows = predicted(model, WHITE[:9])[0]
    assert {row["error"] for row in rows} == {"non_finite"}
    assert not store.list_files("_control/scores")
    found = predicted(model, np.concatenate([WHITE[:1], DARK, WHITE[:1]]))[0]
    assert [row["error"] for row in found] == ["non_finite", *[None] * len(DARK), "non_finite"]
    expected = predicted(predictor(None, **LOGITS_OF), DARK)[0]
    np.testing.assert_allclose(scores(found[1:-1]), scores(expected), atol=1e-6)
