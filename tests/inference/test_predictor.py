"""Test that predictions equal a plain loop for all batch sizes, and that only bad rows fail."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import models
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.runs.predicting import (
    BAD,
    BLACK,
    OUTPUTS,
    SIZE_PX,
    WHITE,
    Convolved,
    images,
    is_predicted,
    predict,
    predictor,
    rows_of,
)
from support.runs.selection import examples
from torch import nn
from toy_input import ToyInput

from pipeline.core.errors import JobError
from pipeline.inference.devices.device_buffers import DeviceBuffer, FreeBuffers
from pipeline.inference.engines.torch_engine import TorchEngine

MEAN, STD = (0.4, 0.45, 0.5), (0.2, 0.25, 0.3)
NORMALISED = {"mean": MEAN, "std": STD}


def buffers(number: int, batch_size: int) -> list[DeviceBuffer]:
    """Several batches in flight, as on a GPU, each with a buffer of its own."""
    shape = (batch_size, SIZE_PX, SIZE_PX, 3)
    return [
        DeviceBuffer({"image": torch.zeros(math.prod(shape), dtype=torch.uint8)}, ToyInput().gather)
        for _ in range(number)
    ]


def scores_of(row: dict[str, Any]) -> dict[str, float]:
    return {entry["label"]: entry["score"] for entry in row["top_k"]}


def plain_loop(module: nn.Module, pixels: np.ndarray, top_k: int = 3) -> list[dict[str, float]]:
    """The reference: one image after the other, with the usual normalisation."""
    module.eval()
    top_labels = []
    for image in pixels:
        x = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1) / 255
        x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        with torch.inference_mode():
            scores = torch.softmax(module(x[None]), dim=1)[0].tolist()
        best = sorted(zip(models.LABELS, scores, strict=True), key=lambda pair: -pair[1])
        top_labels.append(dict(best[:top_k]))
    return top_labels


# ---------------------------------------------------------------------------- right answers


@examples(60)
@given(
    batch_size=st.sampled_from([1, 3, 32]),
    bad=st.lists(st.booleans(), min_size=1, max_size=70),
    seed=st.integers(0, 3),
)
def test_predictions_equal_a_plain_loop(batch_size: int, bad: list[bool], seed: int):
    pixels = images(len(bad), seed)
    failures = [BAD if is_bad else None for is_bad in bad]
    model = predictor("support.runs.predicting:convolved", batch_size, transform=NORMALISED)
    rows, counters = predict(model, rows_of(pixels, failures))
    expected = plain_loop(Convolved(), pixels)
    for is_bad, row, scores in zip(bad, rows, expected, strict=True):
        assert is_predicted(row) != is_bad
        if is_bad:
            assert (row["error"], row["error_stage"]) == ("truncated", "decode")
            assert (row["message"], row["sha256"], row["num_bytes"]) == ("half of it", "e" * 64, 7)
        else:
            assert list(scores_of(row)) == list(scores)
            assert scores_of(row) == pytest.approx(scores, abs=1e-6)
    num_good = bad.count(False)
    assert counters["predict"]["rows_in"] == counters["predict"]["rows_out"] == num_good
    assert counters["transfer"]["bytes_in"] == num_good * 3 * SIZE_PX**2


def test_every_batch_is_whole_but_the_last(calls: Callable[[TorchEngine], list[int]]):
    model = predictor("models:colours", 8)
    seen = calls(model)
    failures = [BAD if row % 5 == 0 else None for row in range(30)]
    predict(model, rows_of(images(30), failures))
    assert seen == [8, 8, 8]
    predict(model, rows_of(images(9)))
    assert seen[3:] == [8, 1]


def test_rows_that_all_failed_call_no_model(calls: Callable[[TorchEngine], list[int]]):
    model = predictor("models:colours")
    seen = calls(model)
    rows, _ = predict(model, rows_of(images(4), [BAD] * 4))
    assert seen == []
    assert not any(is_predicted(row) for row in rows)


def test_the_input_is_not_written_to():
    pixels = images(20)
    rows = rows_of(pixels)
    model = predictor("models:colours", 7, transform=NORMALISED)
    before = pixels.tobytes()
    predict(model, rows)
    assert pixels.tobytes() == before
    shipped = pa.ipc.open_stream(_stream(rows)).read_all()  # as Ray sends it: memory is read-only
    copy = _stream(shipped).to_pybytes()
    assert predict(model, shipped)[0] == predict(model, rows)[0]
    assert _stream(shipped).to_pybytes() == copy


def _stream(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


NUMBERS = [{"name": "a", "shape": []}, {"name": "b", "shape": []}]


@pytest.mark.parametrize(
    ("factory", "model"),
    [
        (
            "support.runs.predicting:vectors",
            {"task": "embed", "embedding_dim": 2, "l2_norm": False},
        ),
        ("support.runs.predicting:numbers", {"task": "raw", "outputs": NUMBERS}),
    ],
    ids=["one vector", "two outputs"],
)
@pytest.mark.parametrize("batch_size", [3, 32])
def test_one_number_that_is_not_finite_costs_its_row_and_no_other(
    factory: str, model: dict[str, Any], batch_size: int
):
    pixels = np.zeros((len(OUTPUTS), SIZE_PX, SIZE_PX, 3), np.uint8)
    pixels += np.arange(len(OUTPUTS), dtype=np.uint8)[:, None, None, None]
    whole = predictor(factory, batch_size, labels=None, top_k=None, **model)
    predicted = whole.predict(rows_of(pixels), {})
    is_finite = OUTPUTS.isfinite().all(dim=1).tolist()
    assert predicted["error"].to_pylist() == [None if ok else "non_finite" for ok in is_finite]
    for row, ok in zip(predicted.to_pylist(), is_finite, strict=True):
        values = row["embedding"] if "embedding" in row else [row["a"], row["b"]]
        assert (values == OUTPUTS[int(row["n"])].tolist()) if ok else values in (None, [None] * 2)


def test_rows_in_several_chunks_and_with_an_offset_are_the_same_rows():
    rows = rows_of(images(12))
    model = predictor("support.runs.predicting:convolved", 5)
    expected = predict(model, rows)[0]
    assert predict(model, pa.concat_tables([rows.slice(0, 5), rows.slice(5)]))[0] == expected
    predicted = predict(model, rows.slice(3, 6))[0]
    assert [row["row_id"] for row in predicted] == [f"r{row}" for row in range(3, 9)]
    for mine, theirs in zip(predicted, expected[3:9], strict=True):
        assert scores_of(mine) == pytest.approx(scores_of(theirs), abs=1e-6)


# ---------------------------------------------------------------------------- failing rows


@examples(60)
@given(
    kinds=st.lists(
        st.sampled_from(["good", "good", "dark", "white", "bad"]), min_size=1, max_size=40
    ),
    batch_size=st.sampled_from([1, 4, 32]),
    num_buffers=st.sampled_from([1, 2, 3]),
)
def test_a_row_that_the_model_cannot_take_costs_itself(
    kinds: list[str], batch_size: int, num_buffers: int
):
    pixels = images(len(kinds))
    for row, row_type in enumerate(kinds):
        if row_type in ("dark", "white"):
            pixels[row] = BLACK if row_type == "dark" else WHITE
    failures = [BAD if row_type == "bad" else None for row_type in kinds]
    model = predictor("models:fussy", batch_size)
    model._model.buffers = FreeBuffers(buffers(num_buffers, batch_size))
    rows, counters = predict(model, rows_of(pixels, failures))
    undisturbed, _ = predict(predictor("models:colours", batch_size), rows_of(pixels, failures))
    expected = {"dark": "model_error", "white": "non_finite", "bad": "truncated", "good": None}
    assert [row["error"] for row in rows] == [expected[row_type] for row_type in kinds]
    for row_type, row, calm in zip(kinds, rows, undisturbed, strict=True):
        assert is_predicted(row) == (row_type == "good")
        if row_type == "good":
            assert scores_of(row) == pytest.approx(scores_of(calm), abs=1e-6)
        if row_type == "dark":
            assert row["error_stage"] == "predict"
            assert row["message"] == "ValueError: too dark to look at"
    assert counters["predict"]["rows_quarantined"] == kinds.count("dark") + kinds.count("white")


def test_out_of_memory_halves_the_batch_remembers_and_loses_no_row(
    calls: Callable[[TorchEngine], list[int]],
):
    model = predictor("models:hungry", 32)
    seen = calls(model)
    pixels = images(50)
    rows, _ = predict(model, rows_of(pixels))
    assert max(seen) == 32
    expected, _ = predict(predictor("models:colours", 32), rows_of(pixels))
    assert all(is_predicted(row) for row in rows)
    for mine, theirs in zip(rows, expected, strict=True):
        assert scores_of(mine) == pytest.approx(scores_of(theirs), abs=1e-6)
    seen.clear()
    rows, _ = predict(model, rows_of(pixels))
    assert all(is_predicted(row) for row in rows)
    assert max(seen) <= 4
    assert sum(seen) == 50


def test_a_row_that_never_fits_is_out_of_memory():
    pixels = images(9)
    pixels[4] = WHITE
    rows, _ = predict(predictor("failing_models:never_fits", 8), rows_of(pixels))
    errors: list[str | None] = [None] * 9
    errors[4] = "out_of_memory"
    assert [row["error"] for row in rows] == errors


def test_nothing_of_a_failed_batch_is_kept_while_its_halves_run():
    alive: list[int] = []

    class Watch(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.refs: list[Any] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            import weakref

            alive.append(sum(ref() is not None for ref in self.refs))
            self.refs.append(weakref.ref(x))
            return self.inner(x)

    model = predictor("models:hungry", 16)
    module = model._model.runner.run.__self__
    module.module = Watch(module.module)
    predict(model, rows_of(images(16)))
    assert len(alive) > 4
    assert set(alive) == {0}


@pytest.mark.parametrize(
    ("factory", "words"), [("wrong", ["(1, 6)", "(1, 5)"]), ("scalar", ["dict", "(1, 5)"])]
)
def test_a_wrong_output_fails_every_row_and_names_both_shapes(factory: str, words: list[str]):
    rows, counters = predict(predictor(f"failing_models:{factory}", 4), rows_of(images(6)))
    for row in rows:
        assert row["error"] == "model_error"
        assert not is_predicted(row)
        assert all(word in row["message"] for word in words)
    assert counters["predict"]["rows_quarantined"] == 6


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(JobError, match=r"resources\.num_gpus = 1: .*sees no CUDA device"):
        predictor("models:colours", num_gpus=1)


@pytest.fixture
def calls() -> Callable[[TorchEngine], list[int]]:
    """Record the number of rows of every later call of a predictor's model."""

    def watch(model: TorchEngine) -> list[int]:
        seen: list[int] = []
        model._model.runner.run.__self__.module.register_forward_pre_hook(
            lambda _, args: seen.append(len(args[0]))
        )
        return seen

    return watch


# ---------------------------------------------------------------------------- on a GPU

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.02), ("fp16", 0.01)]
)
def test_the_gpu_predicts_what_the_cpu_predicts(precision: str, tolerance: float):
    """In many batches, of which several overlap on the device."""
    failures = [BAD if row % 7 == 0 else None for row in range(500)]
    rows = rows_of(images(500, seed=5), failures)
    made: dict[str, Any] = {"factory": "support.runs.predicting:convolved", "top_k": 5}
    expected, _ = predict(predictor(batch_size=8, **made), rows)
    predicted, counters = predict(
        predictor(batch_size=8, num_gpus=1, precision=precision, **made), rows
    )
    assert counters["transfer"]["busy_s"] > 0
    assert counters["predict"]["busy_s"] > 0
    for mine, theirs in zip(predicted, expected, strict=True):
        assert is_predicted(mine) == is_predicted(theirs)
        if mine["error"] is None:
            assert scores_of(mine) == pytest.approx(scores_of(theirs), abs=tolerance)


def test_a_module_with_weights_of_five_dimensions_predicts_images():
    rows = rows_of(images(3))
    with_clips = predict(predictor("support.runs.predicting:of_clips_too"), rows)[0]
    assert with_clips == predict(predictor("support.runs.predicting:convolved"), rows)[0]


@pytest.mark.gpu
@needs_gpu
def test_failing_rows_cost_themselves_on_the_gpu_too():
    pixels = images(20)
    pixels[3], pixels[11] = BLACK, WHITE
    rows, _ = predict(predictor("models:fussy", 8, num_gpus=1), rows_of(pixels))
    errors = {row["row_id"]: row["error"] for row in rows if row["error"]}
    assert errors == {"r3": "model_error", "r11": "non_finite"}
