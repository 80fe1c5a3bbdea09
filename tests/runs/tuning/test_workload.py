"""Test that timed batches have the lengths, padding and sizes of those of a slice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.models import onnx_files
from support.models.tiny_tokenizer import text_settings

from pipeline.core.errors import JobError
from pipeline.core.schema import NUM_TOKENS, TOKEN_IDS
from pipeline.job.reading.loader import parse_job
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec
from pipeline.models.tasks.base import TaskSpec
from pipeline.preprocessing.images.image_input import ImageInput
from pipeline.preprocessing.images.transform import TransformSpec
from pipeline.preprocessing.model_input import BatchLimits, take_rows
from pipeline.preprocessing.table_input import FeatureInput
from pipeline.preprocessing.texts.text_input import TextInput
from pipeline.preprocessing.texts.text_settings import IDS
from pipeline.runs.tuning.measure import rate_of
from pipeline.runs.tuning.selection import candidates
from pipeline.runs.tuning.workload import (
    CALIBRATED_ROWS,
    SAMPLE_ROWS,
    RunBatch,
    calibrated_rows,
    compared_rows,
    rows_to_sample,
    run_batches,
)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> TextInput:
    return TextInput(text_settings(tmp_path_factory.mktemp("text"), max_tokens=64))


def arrays_of(lengths: list[int]) -> dict[str, np.ndarray]:
    longest = max(lengths, default=0)
    return {
        IDS: np.ones((len(lengths), longest), np.int32),
        NUM_TOKENS: np.array(lengths, np.int32),
    }


@given(lengths=st.lists(st.integers(1, 64), min_size=1, max_size=60), tokens=st.integers(1, 300))
def test_batches_of_texts_hold_all_rows_once_and_stay_what_they_are(
    texts: TextInput, lengths: list[int], tokens: int
):
    inputs, limits = arrays_of(lengths), BatchLimits(16, tokens)
    batches = run_batches(texts, inputs, limits)
    rows = np.concatenate([batch.rows for batch in batches])
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    assert sum(batch.worth for batch in batches) == pytest.approx(len(lengths))
    assert len(batches) == len(texts.batches(inputs, np.arange(len(lengths)), limits))
    for batch in batches:  # alone, as it is timed, it is one batch again
        alone = take_rows(inputs, batch.rows)
        assert len(texts.batches(alone, np.arange(len(batch.rows)), limits)) == 1
        mean = sum(lengths) / len(lengths)
        assert batch.worth == pytest.approx(inputs[NUM_TOKENS][batch.rows].sum() / mean)


def test_the_first_batches_are_long_short_and_between(texts: TextInput):
    batches = run_batches(texts, arrays_of(list(range(1, 65))), BatchLimits(8, 10_000))
    longest = [int(batch.rows.max()) + 1 for batch in batches]
    assert longest[:4] == [64, 32, 48, 16]


def test_a_rate_is_what_was_timed_for_all_of_its_length():
    batches = [RunBatch(np.arange(2), worth) for worth in (6.0, 2.0, 1.0)]
    # Long rows take three times as long, as they stand for three times as many.
    assert rate_of(batches, [[3.0, 3.0, 90.0], [1.0], []]) == pytest.approx(2.0)


def test_rows_of_one_shape_are_timed_in_whole_batches():
    inputs = {"features": np.ones((5, 3), np.float32)}
    batches = run_batches(FeatureInput(), inputs, BatchLimits(4))
    assert [batch.rows.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 0, 1, 2]]
    assert [batch.worth for batch in batches] == [4, 4]


def test_of_texts_a_whole_slice_is_sampled_and_some_of_it_compared(texts: TextInput):
    assert rows_to_sample(FeatureInput(), [512]) == SAMPLE_ROWS
    assert rows_to_sample(texts, [512, 256]) == 512
    assert rows_to_sample(texts, [16]) == SAMPLE_ROWS
    assert rows_to_sample(texts, [1_000_000]) == 2048
    for size in (1, 128, 129, 512, 2048):
        assert 0 < len(range(size)[compared_rows(size)]) <= SAMPLE_ROWS
    assert len(range(512)[compared_rows(512)]) == SAMPLE_ROWS


def test_int8_is_tried_for_texts(texts: TextInput):
    task = TaskSpec("embed", embedding_dim=8)
    spec = ModelSpec("m", "factory", "", None, None, texts, task, "auto", "auto")
    ways = candidates(spec, is_on_gpu=False)
    assert {precision for _, precision in ways} == {"fp32", "bf16", "int8"}
    assert {("openvino", "int8"), ("onnxruntime", "int8")} < set(ways)
    assert not any(precision == "int8" for _, precision in candidates(spec, is_on_gpu=True))


def test_int8_is_not_tried_for_an_onnx_file(tmp_path: Path):
    path = onnx_files.save(onnx_files.features_model(), tmp_path / "m.onnx")
    document = {
        "source": {"uri": "in", "format": "parquet", "features": ["a"]},
        "model": {"path": str(path), "runtime": "auto", "precision": "auto", "task": "embed"},
        "sink": {"uri": "out"},
    }
    spec = resolve_model(parse_job(document, date=None, origin="test"))
    ways = candidates(spec, is_on_gpu=False)
    assert ("onnxruntime", "fp32") in ways
    assert not any(precision == "int8" for _, precision in ways)


def test_a_half_of_the_sample_calibrates_and_of_many_rows_not_those_that_are_compared():
    assert calibrated_rows(SAMPLE_ROWS) == slice(0, None, 2)
    for size in (1, 2, 128, 129, 512, 513, 2048):
        assert 0 < len(range(size)[calibrated_rows(size)]) <= CALIBRATED_ROWS
    for size in (512, 1024, 2048):
        seen = set(range(size)[calibrated_rows(size)])
        assert len(seen) == CALIBRATED_ROWS
        assert not seen & set(range(size)[compared_rows(size)])


def test_images_of_their_own_sizes_are_timed_on_all_of_the_sample():
    plain = (0.0,) * 3, (1.0,) * 3
    images = ImageInput(TransformSpec(None, None, None, *plain, resize="none"))
    task = TaskSpec("embed", embedding_dim=8)
    spec = ModelSpec("m", "factory", "", None, None, images, task, "auto", "auto")
    ways = candidates(spec, is_on_gpu=False)
    assert {precision for _, precision in ways} == {"fp32", "bf16", "int8"}
    assert not {"mnn", "compile"} & {runtime for runtime, _ in ways}
    inputs = {"image": np.empty(5, object)}
    batches = run_batches(images, inputs, BatchLimits(2))
    assert [batch.rows.tolist() for batch in batches] == [[0, 1], [2, 3], [4, 0]]


def test_a_sample_without_a_text_is_said(texts: TextInput):
    columns = {TOKEN_IDS: pa.array([], pa.list_(pa.int32())), NUM_TOKENS: pa.array([], pa.int32())}
    inputs = texts.arrays(pa.table(columns))
    with pytest.raises(JobError, match="none of the sampled texts"):
        run_batches(texts, inputs, BatchLimits(4, 64))
