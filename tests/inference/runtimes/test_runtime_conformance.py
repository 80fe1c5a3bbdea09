"""Every runtime follows the protocol."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import models
import numpy as np
import pytest
import torch
import toy_input
from support.models.tiny_tokenizer import text_settings
from support.runs.checkout import PYTHONPATH
from support.runs.predicting import Convolved, images, predict, predictor, rows_of
from support.runs.selection import quick_cases

from pipeline.core.cache.node_cache import key_of
from pipeline.core.errors import JobError
from pipeline.core.registry import RUNTIMES, names
from pipeline.inference.runtimes import all_runtimes, runtime_of, runtime_versions
from pipeline.inference.runtimes.base import Runner, missing_reason
from pipeline.inference.runtimes.inference_module import InferenceModule
from pipeline.inference.runtimes.opening import make_runner
from pipeline.job.model import AUTO
from pipeline.preprocessing.images.image_input import ImageInput
from pipeline.preprocessing.images.transform import TransformSpec
from pipeline.preprocessing.model_input import BatchLimits
from pipeline.preprocessing.texts.text_input import TextInput

NAMES = ("eager", "compile", "compile-quick", "onnxruntime", "openvino", "mnn")
ALL = pytest.mark.parametrize(
    "name", quick_cases(((name,) for name in NAMES), lambda name: name != "compile")
)
SEEDED = torch.Generator().manual_seed(2)
KNOWN = {"fp32", "tf32", "bf16", "fp16", "int8"}
SIZE_PX, BATCH = models.SIZE_PX, 4
TRANSFORM = TransformSpec(SIZE_PX, SIZE_PX, "bilinear", (0.4, 0.45, 0.5), (0.2, 0.25, 0.3))


def require(name: str) -> None:
    if reason := missing_reason(runtime_of(name), "fp32", is_on_gpu=False):
        pytest.skip(reason)


def test_every_runtime_is_tried_here():
    assert names(RUNTIMES) == NAMES
    assert {runtime.name for runtime in all_runtimes()} == set(NAMES)


GONE = """
import gc, signal, sys, threading
import torch
from pipeline.inference.runtimes.inference_module import InferenceModule
from pipeline.inference.runtimes.opening import make_runner
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


@ALL
def test_outputs_and_their_structure_are_those_of_eager_fp32(name: str):
    require(name)
    batch = {"image": torch.from_numpy(np.ascontiguousarray(images(BATCH, seed=3)))}
    for module in (Convolved(), models.Channels()):
        inner = InferenceModule(module.eval(), ImageInput(TRANSFORM), torch.float32)
        example = {"image": torch.zeros((BATCH, SIZE_PX, SIZE_PX, 3), dtype=torch.uint8)}
        with torch.inference_mode():
            expected = inner.run(batch)
            runner = make_runner(name, "fp32", lambda inner=inner: inner, example, num_threads=1)
            found = runner.run(batch)
        assert runner.is_static == runtime_of(name).is_static
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name", quick_cases(((name,) for name in NAMES[2:]), lambda name: name == "openvino")
)
def test_a_signal_is_handled_when_a_runner_has_gone_in_another_thread(name: str):
    require(name)
    done = subprocess.run(
        [sys.executable, "-c", GONE, name],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


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


@ALL
def test_a_last_batch_that_is_not_full_changes_nothing(name: str):
    require(name)
    rows = rows_of(images(7))
    expected, _ = predict(predictor("support.runs.predicting:convolved"), rows)
    found, _ = predict(
        predictor("support.runs.predicting:convolved", batch_size=4, runtime=name), rows
    )
    assert [row["label"] for row in found] == [row["label"] for row in expected]
    scores = [row["score"] for row in expected]
    np.testing.assert_allclose([row["score"] for row in found], scores, atol=1e-5)


def test_versions_of_its_packages_decide_what_the_node_keeps():
    key = key_of(["a model"])
    assert key_of(["a model"], ("pillow",)) != key
    assert key_of(["a model"], ("no-such-distribution",)) == key
    assert {"torch", "onnx", "openvino", "MNN"} <= set(runtime_versions())


def test_listing_runtimes_imports_no_library_that_runs_models():
    code = (
        "from pipeline.inference.runtimes import all_runtimes; import sys; all_runtimes();"
        "print({'torch', 'onnx', 'onnxruntime', 'openvino', 'MNN', 'ray'} & set(sys.modules))"
    )
    env = {"PYTHONPATH": PYTHONPATH}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert (done.stdout.strip(), done.returncode) == ("set()", 0), done.stderr
