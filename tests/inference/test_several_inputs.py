"""Test that batches of models of several inputs equal a plain loop, row by row, in all tasks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from models import LABELS
from support.inputs import several_rows
from support.inputs.several_rows import INPUTS, PAIR, TITLES, job_of, loop, planned

from pipeline.core.errors import JobError
from pipeline.core.figures import Counters
from pipeline.core.schema import ERROR
from pipeline.execution.stages import Preprocessing
from pipeline.inference.engines.torch_engine import TorchEngine
from pipeline.runs.tuning.measure import calibrate
from pipeline.storage.store import Store

NUM_ROWS = 40
INT8_ERROR = 0.03
"""Relative to the largest output."""
Columns = dict[str, list[Any]]


@pytest.fixture(scope="module")
def columns() -> Columns:
    return several_rows.rows_of(NUM_ROWS)


@pytest.fixture
def sections(tmp_path: Path, columns: Columns) -> dict[str, Any]:
    return several_rows.write_rows(tmp_path, columns)


def predicted(job: Any, runtime: str = "eager", batch_size: int = 8) -> tuple[pa.Table, Counters]:
    plan, config, rows = planned(job, batch_size)
    config = replace(config, spec=replace(config.spec, runtime=runtime))
    counters = Counters()
    preprocessing = Preprocessing.of(job.source, config.spec.input, 1, plan.fields)
    assert preprocessing is not None
    table = TorchEngine(config).predict(preprocessing(counters, rows), counters)
    assert table.column(ERROR).null_count == table.num_rows
    return table, counters


def test_a_photo_a_text_and_a_number(sections: dict[str, Any], columns: Columns) -> None:
    job = job_of(sections, INPUTS, factory="models:several", labels=LABELS)
    table, counters = predicted(job)
    logits = loop("several", columns)
    assert table.column("label_id").to_pylist() == logits.argmax(axis=1).tolist()
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(table.column("score").to_numpy(), scores.max(axis=1), atol=1e-5)
    tokens = table.column("num_tokens").to_numpy()
    assert tokens.tolist() == [several_rows.tokens(t)[0].shape[1] for t in columns["caption"]]
    assert counters["tokens"]["num_tokens"] == tokens.sum()
    assert counters["tokens"]["num_tokens"] <= counters["tokens"]["num_padded"] <= 64 * NUM_ROWS
    assert counters["decode"]["rows_in"] == counters["tokenize"]["rows_in"] == NUM_ROWS


def test_two_photos(sections: dict[str, Any], columns: Columns) -> None:
    embed = {"task": "embed", "embedding_dim": 7}
    table, counters = predicted(job_of(sections, PAIR, factory="models:pair", **embed))
    vectors = np.array(table["embedding"].to_pylist())
    np.testing.assert_allclose(vectors, loop("pair", columns), atol=1e-5)
    assert (counters["decode"]["rows_in"], counters["decode"]["rows_out"]) == (NUM_ROWS, NUM_ROWS)


@pytest.mark.parametrize(("case", "inputs"), [("pair", PAIR), ("several", INPUTS)])
def test_photos_that_keep_their_sizes(
    case: str, inputs: dict[str, Any], columns: Columns, tmp_path: Path
) -> None:
    varied = {
        **columns,
        "photo": [several_rows.photo(row, 20 + 7 * (row % 3), 40) for row in range(NUM_ROWS)],
        "other": [several_rows.photo(row, 33, 20 + 9 * (row % 2)) for row in range(NUM_ROWS)],
    }
    sections = several_rows.write_rows(tmp_path, varied)
    sections["transform"] = several_rows.NOT_RESIZED
    expected = loop(case, varied)
    embed = {"task": "embed", "embedding_dim": expected.shape[1]}
    table, _ = predicted(job_of(sections, inputs, factory=f"models:{case}", **embed))
    np.testing.assert_allclose(np.array(table["embedding"].to_pylist()), expected, atol=1e-5)
    heights = table["height_px" if case == "several" else "left_height_px"]
    assert heights.to_pylist() == [20 + 7 * (row % 3) for row in range(NUM_ROWS)]


def test_two_texts_whose_lengths_differ(sections: dict[str, Any], columns: Columns) -> None:
    job = job_of(sections, TITLES, factory="models:titles", labels=LABELS)
    table, _ = predicted(job)
    logits = loop("titles", columns)
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(table.column("score").to_numpy(), scores.max(axis=1), atol=1e-5)
    names = {"title_num_tokens", "body_num_tokens", "title_truncated", "body_truncated"}
    assert names <= {*table.column_names}


@pytest.mark.slow
def test_int8_is_calibrated_by_all_inputs(
    sections: dict[str, Any], columns: Columns, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    embed = {"task": "embed", "embedding_dim": 5}
    job = job_of(sections, INPUTS, factory="models:several", **embed)
    plan, config, rows = planned(job)
    preprocessing = Preprocessing.of(job.source, config.spec.input, 1, plan.fields)
    assert preprocessing is not None
    arrays = config.spec.input.arrays(preprocessing(Counters(), rows))
    config = replace(config, models=Store(str(tmp_path / "models")))
    sha256, problem = calibrate(config, arrays)
    assert problem == ""
    way = {"runtime": "onnxruntime", "precision": "int8", "artefact_sha256": sha256}
    vectors = TorchEngine(replace(config, spec=replace(config.spec, **way))).reduce(arrays)[
        "embedding"
    ]
    expected = loop("several", columns)
    assert np.abs(vectors - expected).max() <= INT8_ERROR * np.abs(expected).max()
    assert not np.array_equal(vectors, expected)


@pytest.mark.parametrize(
    ("inputs", "model", "words"),
    [
        (PAIR, {"factory": "models:several", "labels": LABELS}, "forward of Several needs photo"),
        ({**PAIR, "weight": {"features": ["weight"]}}, {"factory": "models:pair", "task": "score"},
         "source.inputs.weight: forward of Pair takes left, right, not weight"),
    ],
)  # fmt: skip
def test_a_model_that_takes_others_is_refused_when_it_is_loaded(
    inputs: dict[str, Any], model: dict[str, Any], words: str, sections: dict[str, Any]
) -> None:
    _, config, _ = planned(job_of(sections, inputs, **model))
    with pytest.raises(JobError) as caught:
        TorchEngine(config)
    assert words in str(caught.value)


def test_what_cannot_have_several_inputs_is_refused(sections: dict[str, Any]) -> None:
    for inputs, model, words in (
        (PAIR, {"path": "models/vit"}, "model.path = models/vit: a model directory has one input"),
        (INPUTS, {"factory": "models:several", "labels": LABELS, "task": "tokens"},
         "model.task = 'tokens': has places in one text"),
    ):  # fmt: skip
        with pytest.raises(JobError) as caught:
            planned(job_of(sections, inputs, **model))
        assert words in str(caught.value)
    job = job_of(sections, PAIR, factory="models:pair", task="score")
    job = job.model_copy(update={"text": type(job.text)(max_tokens=9)})
    with pytest.raises(JobError, match=r"text.max_tokens: has no effect on inputs left, right"):
        planned(job)
