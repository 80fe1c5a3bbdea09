"""Test that every runtime keeps the protocol, and agrees with eager fp32 or says why not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
import toy_input
from support.models.tiny_tokenizer import text_settings
from support.runs.checkout import PYTHONPATH
from support.runs.predicting import Convolved, images, predict, predictor, rows_of
from support.runs.selection import quick_cases
from torch.utils import _pytree as pytree

from pipeline.core.errors import JobError
from pipeline.core.node_cache import key_of
from pipeline.core.registry import RUNTIMES, names
from pipeline.core.semantics import environment_versions
from pipeline.inference.runtimes import all_runtimes, runtime_of, runtime_versions
from pipeline.inference.runtimes.inference_module import InferenceModule
from pipeline.inference.runtimes.int8 import INT8
from pipeline.inference.runtimes.make_runner import dtype_of, make_runner
from pipeline.inference.runtimes.mnn import PUBLIC_CONVERTER, convert
from pipeline.inference.runtimes.runtime import Runner, missing_reason
from pipeline.job.model import AUTO
from pipeline.models.agreement import AgreementLimits
from pipeline.preprocessing.images.image_input import ImageInput
from pipeline.preprocessing.images.transform import TransformSpec
from pipeline.preprocessing.model_input import BatchLimits
from pipeline.preprocessing.texts.text_input import TextInput

NAMES = ("eager", "compile", "compile-quick", "onnxruntime", "openvino", "mnn")
ALL = pytest.mark.parametrize(
    "name",
    quick_cases(((name,) for name in NAMES), lambda name: name not in ("compile", "openvino")),
)
SEEDED = torch.Generator().manual_seed(2)
KNOWN = {"fp32", "tf32", "bf16", "fp16", "int8"}
SIZE_PX, BATCH = models.SIZE_PX, 4
TRANSFORM = TransformSpec(SIZE_PX, SIZE_PX, "bilinear", (0.4, 0.45, 0.5), (0.2, 0.25, 0.3))
EXAMPLE = {"image": torch.zeros((BATCH, SIZE_PX, SIZE_PX, 3), dtype=torch.uint8)}
ON_CPU = [
    (runtime.name, precision)
    for runtime in all_runtimes()
    for precision, devices in runtime.precisions.items()
    if "cpu" in devices and precision != INT8  # which needs rows: test_int8
]


def require(name: str, precision: str = "fp32") -> None:
    if reason := missing_reason(runtime_of(name), precision, is_on_gpu=False):
        pytest.skip(reason)


def test_every_runtime_is_tried_here():
    assert names(RUNTIMES) == NAMES
    assert {runtime.name for runtime in all_runtimes()} == set(NAMES)


GONE = """
import gc, signal, sys, threading
import torch
from pipeline.inference.runtimes.inference_module import InferenceModule
from pipeline.inference.runtimes.int8 import INT8
from pipeline.inference.runtimes.mnn import PUBLIC_CONVERTER, convert
from pipeline.inference.runtimes.make_runner import dtype_of, make_runner
from pipeline.models.agreement import AgreementLimits
from pipeline.preprocessing.images.image_input import ImageInput
from pipeline.preprocessing.images.transform import TransformSpec
from support.runs.predicting import Convolved
input_ = ImageInput(TransformSpec(8, 8, "bilinear", (0.4, 0.45, 0.5), (0.2, 0.25, 0.3)))
inner = InferenceModule(Convolved().eval(), input_, torch.float32)
example = {"image": torch.zeros((4, 8, 8, 3), dtype=torch.uint8)}
held = [make_runner(sys.argv[1], "fp32", lambda: inner, example, num_threads=1)]
held[0].run(example)
thread = threading.Thread(target=lambda: (held.clear(), gc.collect()))
thread.start()
thread.join()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""


@ALL
def test_it_says_what_it_runs_where(name: str):
    runtime = runtime_of(name)
    assert runtime.name == name
    assert name != AUTO
    assert set(runtime.precisions) <= KNOWN
    assert "fp32" in runtime.precisions
    for devices in runtime.precisions.values():
        assert devices
        assert set(devices) <= {"cpu", "gpu"}
    assert bool(runtime.packages) == bool(runtime.extra)
    wrong = next(iter(KNOWN - set(runtime.precisions)), "fp8")
    assert missing_reason(runtime, wrong, is_on_gpu=False)


def test_the_reference_is_tried_first_and_no_two_at_once():
    orders = [runtime.trial_order for runtime in all_runtimes()]
    assert all_runtimes()[0].name == "eager"
    assert len(set(orders)) == len(orders)


def runner_of(
    module: torch.nn.Module, runtime: str, precision: str = "fp32", layer: str | None = None
) -> Runner:
    require(runtime, precision)
    dtype = dtype_of(runtime, precision)
    whole = InferenceModule(module.to(dtype).eval(), ImageInput(TRANSFORM), dtype, layer)
    return make_runner(runtime, precision, lambda: whole, EXAMPLE, num_threads=1)


def batch() -> dict[str, torch.Tensor]:
    return {"image": torch.from_numpy(np.ascontiguousarray(images(BATCH, seed=3)))}


@pytest.mark.parametrize(
    ("name", "precision"), quick_cases(ON_CPU, lambda name, precision: name != "compile")
)
@pytest.mark.parametrize(
    ("made", "layer"),
    quick_cases(
        [(Convolved, None), (models.Channels, None), (Convolved, "net.3")],
        lambda made, layer: layer is not None,
    ),
)
def test_outputs_and_their_structure_are_those_of_eager_fp32(
    made: type[torch.nn.Module], layer: str | None, name: str, precision: str
):
    runner = runner_of(made(), name, precision, layer)
    with torch.inference_mode():
        expected = runner_of(made(), "eager", layer=layer).run(batch())
        outputs = pytree.tree_map(torch.Tensor.float, runner.run(batch()))
    assert runner.is_static == runtime_of(name).is_static
    if precision == "fp32":
        torch.testing.assert_close(outputs, expected, atol=1e-4, rtol=1e-4)
    for one, other in zip(pytree.tree_leaves(outputs), pytree.tree_leaves(expected), strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 0.03 * other.abs().max()


@pytest.mark.parametrize(
    ("name", "precision", "words"),
    [
        ("onnxruntime", "bf16", "onnxruntime runs fp32, int8, not bf16"),
        ("openvino", "fp16", "openvino runs fp32, bf16, int8, not fp16"),
        ("mnn", "bf16", "mnn runs fp32, not bf16"),
        ("eager", "fp16", "fp16 needs a GPU"),
        ("compile", "tf32", "tf32 needs a GPU"),
    ],
)
def test_what_cannot_be_is_said_with_its_reason(name: str, precision: str, words: str):
    with pytest.raises(JobError, match=words):
        predictor("models:colours", runtime=name, precision=precision)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[2:])
def test_a_signal_is_handled_when_a_runner_has_gone_in_another_thread(name: str):
    require(name)
    done = subprocess.run(
        [sys.executable, "-c", GONE, name],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
    )
    # MNN prints what its processor supports before.
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["handled"]), done.stderr


@ALL
def test_a_model_of_several_inputs_gets_them_by_name(name: str):
    require(name)
    seen, module = toy_input.ToyInput(), toy_input.Mixed()
    inner = InferenceModule(module.eval(), seen, torch.float32)
    slots = seen.slots(BatchLimits(BATCH))
    batch = {n: torch.rand(slot.shape, generator=SEEDED) for n, slot in slots.items()}
    example = {n: torch.zeros_like(tensor) for n, tensor in batch.items()}
    with torch.inference_mode():
        expected = module(**batch)
        runner = make_runner(name, "fp32", lambda: inner, example, num_threads=1)
        torch.testing.assert_close(runner.run(batch), expected, atol=1e-4, rtol=1e-4)


@ALL
def test_texts_of_any_length_run_or_are_refused_in_words(name: str, tmp_path: Path):
    require(name)
    seen = TextInput(text_settings(tmp_path))
    inner = InferenceModule(models.MeanOfWords().eval(), seen, torch.float32)
    slots = seen.slots(BatchLimits(BATCH))
    example = {n: torch.ones((2, 8), dtype=torch.int32) for n in slots}
    varying = {n: slot.varying for n, slot in slots.items()}

    def opened() -> Runner:
        return make_runner(name, "fp32", lambda: inner, example, num_threads=1, varying=varying)

    if not runtime_of(name).takes_varying:
        with pytest.raises(JobError, match="texts differ in length"):
            opened()
        return
    runner = opened()
    assert not runner.is_static
    for shape in ((3, 8), (1, 16), (5, 3)):
        ids = torch.randint(1, 20, shape, dtype=torch.int32, generator=SEEDED)
        mask = torch.ones_like(ids)
        mask[-1, 1:] = 0
        batch = {"input_ids": ids, "attention_mask": mask}
        with torch.inference_mode():
            expected = inner.run(batch)
            torch.testing.assert_close(runner.run(batch), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name",
    quick_cases(
        ((name,) for name in NAMES), lambda name: name in ("eager", "compile-quick", "mnn")
    ),
)
def test_a_last_batch_that_is_not_full_changes_nothing(name: str):
    require(name)
    rows = rows_of(images(7))
    expected, _ = predict(predictor("support.runs.predicting:convolved"), rows)
    results, _ = predict(
        predictor("support.runs.predicting:convolved", batch_size=4, runtime=name), rows
    )
    assert [row["label"] for row in results] == [row["label"] for row in expected]
    scores = [row["score"] for row in expected]
    np.testing.assert_allclose([row["score"] for row in results], scores, atol=1e-5)


def test_versions_of_its_packages_decide_what_the_node_keeps():
    key = key_of(["a model"])
    assert key_of(["a model"], ("pillow",)) != key
    assert key_of(["a model"], ("no-such-distribution",)) == key
    assert {"torch", "onnx", "openvino", "MNN"} <= set(runtime_versions())


def test_its_library_is_compared_before_rows_are_carried_over():
    libraries = {runtime.packages[0] for runtime in all_runtimes() if runtime.packages}
    assert libraries <= set(environment_versions())


def test_listing_engines_and_runtimes_imports_no_library_that_runs_models():
    code = (
        "import sys, pipeline.inference.engines; from pipeline.inference import runtimes;"
        "runtimes.all_runtimes();"
        "print({'torch', 'transformers', 'onnx', 'onnxruntime', 'openvino', 'MNN', 'ray'}"
        " & set(sys.modules))"
    )
    env = {"PYTHONPATH": PYTHONPATH}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert (done.stdout.strip(), done.returncode) == ("set()", 0), done.stderr


@pytest.mark.slow
def test_the_public_converter_of_mnn_writes_the_same_as_the_private_one(tmp_path: Path):
    require("mnn")
    program = torch.onnx.export(torch.nn.Linear(4, 3).eval(), (torch.zeros(2, 4),), dynamo=True)
    assert program is not None
    program.save(tmp_path / "model.onnx")
    convert(tmp_path / "model.onnx", tmp_path / "private.mnn")
    convert(tmp_path / "model.onnx", tmp_path / "public.mnn", PUBLIC_CONVERTER)
    assert (tmp_path / "public.mnn").stat().st_size == (tmp_path / "private.mnn").stat().st_size


def test_what_mnn_cannot_convert_is_said_in_one_line(tmp_path: Path):
    require("mnn")
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(RuntimeError, match=r"^its converter ended with .+: .+$"):
        convert(tmp_path / "model.onnx", tmp_path / "model.mnn")
    assert not (tmp_path / "model.mnn").exists()


def test_no_float_model_runs_under_the_name_of_int8():
    whole = InferenceModule(Convolved().eval(), ImageInput(TRANSFORM), torch.float32)
    with pytest.raises(JobError, match="no calibrated model"):
        make_runner("onnxruntime", "int8", lambda: whole, EXAMPLE, num_threads=1)


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
    assert counted["lax"]["num_rows"] == counted["lax"]["num_agreed"] == 16
    assert counted["strict"]["num_agreed"] < counted["strict"]["num_rows"] == 16
