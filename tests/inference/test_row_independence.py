"""Test that models whose predictions depend on other rows are refused, or not padded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from support.models.snapshots import make_snapshot, write_model
from support.models.snapshots import write_tokenizer as write
from support.runs.jobs import job_over
from support.runs.predicting import images, predict, predictor, rows_of
from support.runs.selection import quick_cases

from pipeline.core.errors import JobError
from pipeline.core.failures import failure_columns
from pipeline.core.figures import SliceFigures
from pipeline.core.schema import TEXT
from pipeline.inference.engines.torch_engine import TorchEngine
from pipeline.inference.row_independence import ONE_LENGTH, ONE_ROW
from pipeline.job.model import Model
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec, PredictorConfig
from pipeline.preprocessing.model_input import Limits

TEXTS = ("a cat", "the dog sat on the mat and ran", "", "rain in the city " * 5, "one", "a b c d e")
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
PADDED: dict[str, dict[str, Any]] = {
    "XLNet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
    "Llama": {**SIZES, "pad_token_id": None},
    "FNet": SIZES,
    "ConvBert": {**SIZES, "embedding_size": 32},
    "MobileBert": {**SIZES, "embedding_size": 32, "intra_bottleneck_size": 16},
}


ALONE = "differed without the other rows of the batch: the model depends on them"


def spec_of(folder: Path, input_name: str, **more: Any) -> ModelSpec:
    return resolve_model(job_over(input_name, Model(path=str(folder), **more)))


def rows_of_texts(spec: ModelSpec, texts: tuple[str, ...] = TEXTS) -> pa.Table:
    ids = [str(number) for number in range(len(texts))]
    column = pa.array(texts, pa.large_string())
    rows = pa.table({"row_id": ids, "uri": ids, TEXT: column, **failure_columns([None] * len(ids))})
    return spec.input.prepare(rows, {}, Limits(1 << 30, 1 << 30))


def engine_of(spec: ModelSpec, rows: int = 32, tokens: int = 1024) -> TorchEngine:
    return TorchEngine(PredictorConfig(spec, rows, 0.0, 1, pa.schema([]), batch_tokens=tokens))


@pytest.mark.parametrize(
    "family",
    quick_cases(((family,) for family in PADDED), lambda family: family in ("Llama", "FNet")),
)
def test_models_that_padding_changes_predict_what_the_library_does(family: str, tmp_path: Path):
    import transformers

    config = getattr(transformers, f"{family}Config")
    size = write(tmp_path, "bert")
    made = config(vocab_size=size, num_labels=3, **PADDED[family])
    write_model(tmp_path, getattr(transformers, f"{family}ForSequenceClassification"), made)
    spec = spec_of(tmp_path, "text", top_k=3)
    counters: dict[str, Any] = {}
    table = engine_of(spec).predict(rows_of_texts(spec), counters)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    for text, row in zip(TEXTS, table.to_pylist(), strict=True):
        batch = tokenizer(text, truncation=True, return_tensors="pt")
        if family == "Llama":  # of one type of texts
            batch.pop("token_type_ids", None)
        with torch.inference_mode():
            scores = model(**batch).logits.softmax(-1)[0].tolist()
        assert {e["label_id"]: e["score"] for e in row["top_k"]} == pytest.approx(
            dict(enumerate(scores)), abs=1e-4
        )
    advice = ONE_ROW if family == "Llama" else ONE_LENGTH
    assert SliceFigures.from_json(counters).advice_lines == [advice]


@pytest.mark.parametrize(("rows", "tokens"), [(32, 1024), (1, 0)])
def test_whether_padding_matters_is_known_before_the_first_row(
    rows: int, tokens: int, tmp_path: Path
):
    """Rows do not decide it: of these none is padded, and those of another actor may be."""
    import transformers

    size = write(tmp_path / "padded", "bert")
    made = transformers.FNetConfig(vocab_size=size, **SIZES)
    write_model(tmp_path / "padded", transformers.FNetForSequenceClassification, made)
    usual = make_snapshot(tmp_path / "usual", "bert", "sequence")
    for folder, is_padded in ((tmp_path / "padded", False), (usual, True)):
        engine = engine_of(spec_of(folder, "text"), rows, tokens)
        assert engine._config.spec.input.is_padded == is_padded  # type: ignore[attr-defined]


def test_texts_of_one_length_are_batched_together(tmp_path: Path):
    spec = spec_of(make_snapshot(tmp_path, "bert", "sequence"), "text")
    trial = spec.input.padding_trial()
    assert trial is not None
    seen, inputs = trial[1], spec.input.arrays(rows_of_texts(spec, TEXTS * 3))
    limits = engine_of(spec)._config.limits_of_batch
    batches = seen.batches(inputs, np.arange(18), limits)
    counts = [seen.lengths(inputs, batch) for batch in batches]
    assert all(len(set(lengths)) == 1 for lengths in counts if lengths is not None)
    assert len(batches) == len(set(seen.lengths(inputs, np.arange(18))))  # type: ignore[arg-type]
    assert sorted(np.concatenate(batches)) == [*range(18)]


@pytest.mark.parametrize(
    ("of", "problem", "runtime"),
    [
        ("ramp", "differed each time: the model is not deterministic", "eager"),
        ("mean", ALONE, "eager"),
        ("single", "r0 differed without the other rows of the batch", "eager"),
        ("several", "r0 failed without the other rows of the batch: ValueError: one row", "eager"),
        # The number of calls is exported as it is, and batches have one size.
        pytest.param("mean", ALONE, "openvino", marks=pytest.mark.slow),
    ],
)
def test_models_that_are_no_function_of_a_row_are_refused(of: str, problem: str, runtime: str):
    if runtime == "openvino":
        pytest.importorskip("openvino")
    model = predictor(
        *("support.runs.predicting:impure", 8),
        checks_rows=True,
        args={"of": of},
        runtime=runtime,
        top_k=1,
    )
    with pytest.raises(JobError, match=problem):
        predict(model, rows_of(images(12)))


@pytest.mark.parametrize(
    ("of", "first"), [("mean", 1), ("mean, without memory for the first row alone", 12)]
)
def test_rows_that_were_not_compared_are_compared_in_the_next_slice(of: str, first: int):
    """There is nothing to compare a row alone with; memory may be lacking for a while."""
    args = {"of": of}
    model = predictor("support.runs.predicting:impure", 8, checks_rows=True, args=args, top_k=1)
    predict(model, rows_of(images(first)))
    with pytest.raises(JobError, match="depends on them"):
        predict(model, rows_of(images(12)))
