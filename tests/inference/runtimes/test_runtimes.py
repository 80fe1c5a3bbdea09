"""Every runtime agrees with eager fp32 for full and partial batches, or says why it cannot run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from support.runs.predicting import Convolved, images, predict, predictor, rows_of
from support.runs.selection import quick_cases

from pipeline.core.errors import JobError
from pipeline.inference.runtimes import all_runtimes, runtime_of
from pipeline.inference.runtimes.base import missing_reason
from pipeline.inference.runtimes.inference_module import InferenceModule
from pipeline.inference.runtimes.int8 import INT8
from pipeline.inference.runtimes.mnn import PUBLIC_CONVERTER, convert
from pipeline.inference.runtimes.opening import dtype_of, make_runner
from pipeline.models.agreement import AgreementLimits
from pipeline.preprocessing.images.image_input import ImageInput
from pipeline.preprocessing.images.transform import TransformSpec

ON_CPU = [
    (runtime.name, precision)
    for runtime in all_runtimes()
    for precision, devices in runtime.precisions.items()
    if "cpu" in devices and precision != INT8  # which needs rows: test_int8
]
RUNTIMES = [runtime.name for runtime in all_runtimes()]
TOLERANCE = {"fp32": 1e-4, "bf16": 0.03}
SIZE_PX, BATCH = models.SIZE_PX, 4
TRANSFORM = TransformSpec(SIZE_PX, SIZE_PX, "bilinear", (0.4, 0.45, 0.5), (0.2, 0.25, 0.3))


def runner_of(module: torch.nn.Module, runtime: str, precision: str, layer: str | None = None):
    reason = missing_reason(runtime_of(runtime), precision, is_on_gpu=False)
    if reason:
        pytest.skip(reason)
    kind = dtype_of(runtime, precision)
    whole = InferenceModule(module.to(kind).eval(), ImageInput(TRANSFORM), kind, layer)
    example = {"image": torch.zeros((BATCH, SIZE_PX, SIZE_PX, 3), dtype=torch.uint8)}
    return make_runner(runtime, precision, lambda: whole, example, num_threads=1)


def batch() -> dict[str, torch.Tensor]:
    return {"image": torch.from_numpy(np.ascontiguousarray(images(BATCH, seed=3)))}


@pytest.mark.parametrize(
    ("runtime", "precision"), quick_cases(ON_CPU, lambda runtime, precision: runtime != "compile")
)
def test_outputs_are_those_of_eager_fp32(runtime: str, precision: str):
    with torch.inference_mode():
        expected = runner_of(Convolved(), "eager", "fp32").run(batch())
        found = runner_of(Convolved(), runtime, precision).run(batch())
    assert found.shape == expected.shape
    assert (found.float() - expected).abs().max() <= TOLERANCE[precision] * expected.abs().max()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_layer_is_watched_through_every_runtime(runtime: str):
    with torch.inference_mode():
        expected = runner_of(Convolved(), "eager", "fp32", "net.3").run(batch())
        found = runner_of(Convolved(), runtime, "fp32", "net.3").run(batch())
    assert found.shape == expected.shape == (BATCH, 32)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("runtime", "precision", "words"),
    [
        ("onnxruntime", "bf16", "onnxruntime runs fp32, int8, not bf16"),
        ("openvino", "fp16", "openvino runs fp32, bf16, int8, not fp16"),
        ("mnn", "bf16", "mnn runs fp32, not bf16"),
        ("eager", "fp16", "fp16 needs a GPU"),
        ("compile", "tf32", "tf32 needs a GPU"),
    ],
)
def test_what_cannot_be_is_said_with_its_reason(runtime: str, precision: str, words: str):
    with pytest.raises(JobError, match=words):
        predictor("models:colours", runtime=runtime, precision=precision)


@pytest.mark.slow
def test_the_public_converter_of_mnn_writes_the_same_as_the_private_one(tmp_path: Path):
    if reason := missing_reason(runtime_of("mnn"), "fp32", is_on_gpu=False):
        pytest.skip(reason)
    program = torch.onnx.export(torch.nn.Linear(4, 3).eval(), (torch.zeros(2, 4),), dynamo=True)
    assert program is not None
    program.save(tmp_path / "model.onnx")
    convert(tmp_path / "model.onnx", tmp_path / "private.mnn")
    convert(tmp_path / "model.onnx", tmp_path / "public.mnn", PUBLIC_CONVERTER)
    assert (tmp_path / "public.mnn").stat().st_size == (tmp_path / "private.mnn").stat().st_size


def test_what_mnn_cannot_convert_is_said_in_one_line(tmp_path: Path):
    if reason := missing_reason(runtime_of("mnn"), "fp32", is_on_gpu=False):
        pytest.skip(reason)
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(RuntimeError, match=r"^its converter ended with .+: .+$"):
        convert(tmp_path / "model.onnx", tmp_path / "model.mnn")
    assert not (tmp_path / "model.mnn").exists()


def test_no_float_model_runs_under_the_name_of_int8():
    whole = InferenceModule(Convolved().eval(), ImageInput(TRANSFORM), torch.float32)
    example = {"image": torch.zeros((BATCH, SIZE_PX, SIZE_PX, 3), dtype=torch.uint8)}
    with pytest.raises(JobError, match="no calibrated model"):
        make_runner("onnxruntime", "int8", lambda: whole, example, num_threads=1)


def test_a_few_rows_are_compared_with_eager_fp32_once():
    rows = rows_of(images(40))
    strict = AgreementLimits(max_score_diff=0.0, min_cosine=1.0, max_relative_error=0.0)
    lax = AgreementLimits(max_score_diff=0.5, min_cosine=0.0, max_relative_error=1.0)
    counted: dict[str, Any] = {}
    for name, limits in (("strict", strict), ("lax", lax)):
        model = predictor("support.runs.predicting:convolved", precision="bf16", limits=limits)
        _, first = predict(model, rows)
        _, second = predict(model, rows)
        assert "reference_check" not in second
        counted[name] = first["reference_check"]
    assert counted["lax"]["rows_in"] == counted["lax"]["rows_out"] == 16
    assert counted["strict"]["rows_out"] < counted["strict"]["rows_in"] == 16
