"""Test onnx files and sessions: runtimes run the file itself, or refuse it in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.models import onnx_files
from support.runs.predicting import images

from pipeline.core.errors import JobError
from pipeline.inference.runtimes import all_runtimes, runtime_of
from pipeline.inference.runtimes.export import Exporter
from pipeline.inference.runtimes.inference_module import InferenceModule
from pipeline.inference.runtimes.make_runner import make_runner
from pipeline.inference.runtimes.onnx_runtime import bound, cuda_options, require_on_gpu
from pipeline.inference.runtimes.runtime import Runner, missing_reason
from pipeline.models.onnx_module import OnnxModule
from pipeline.preprocessing.images.image_input import ImageInput
from pipeline.preprocessing.images.transform import TransformSpec
from pipeline.preprocessing.model_input import BatchLimits, Input
from pipeline.preprocessing.table_input import FeatureInput

SIZE_PX, BATCH = 32, 4
TRANSFORM = TransformSpec(SIZE_PX, SIZE_PX, "bilinear", (0.4, 0.45, 0.5), (0.2, 0.25, 0.3))
SEEDED = torch.Generator().manual_seed(4)
ABLE = [
    (runtime.name, precision)
    for runtime in all_runtimes()
    for precision in runtime.file_precisions
    if not missing_reason(runtime, precision, is_on_gpu=False)
]
UNABLE = [runtime.name for runtime in all_runtimes() if not runtime.file_precisions]
TOLERANCE = {"fp32": 1e-4, "bf16": 0.03}


def runner_of(
    path: Path | OnnxModule, seen: Input, runtime: str, precision: str = "fp32"
) -> Runner:
    module = path if isinstance(path, OnnxModule) else OnnxModule.of(path)
    whole = InferenceModule(module, seen, torch.float32).eval()
    example = {
        name: torch.zeros(slot.shape, dtype=getattr(torch, slot.dtype))
        for name, slot in seen.slots(BatchLimits(BATCH)).items()
    }
    with torch.inference_mode():
        return make_runner(runtime, precision, lambda: whole, example, num_threads=1)


def assert_agree(runner: Runner, expected: Runner, batch: dict[str, torch.Tensor], precision: str):
    with torch.inference_mode():
        outputs, wanted = runner.run(batch), expected.run(batch)
    if isinstance(wanted, torch.Tensor):
        outputs, wanted = {"": outputs}, {"": wanted}
    assert list(outputs) == list(wanted)
    for name, values in wanted.items():
        limit = TOLERANCE[precision] * values.abs().max()
        assert outputs[name].shape == values.shape
        assert (outputs[name] - values).abs().max() <= limit


def test_these_runtimes_run_files():
    assert {name for name, _ in ABLE} >= {"eager", "onnxruntime", "openvino"}
    assert set(UNABLE) >= {"compile", "mnn"}


@pytest.mark.parametrize(("runtime", "precision"), ABLE)
@pytest.mark.parametrize("size_px", [SIZE_PX, "side"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_outputs_for_images_are_those_of_the_reference(
    tmp_path: Path, layout: str, size_px: int | str, runtime: str, precision: str
):
    model = onnx_files.image_model(size_px, layout=layout)
    path, seen = onnx_files.save(model, tmp_path / "m.onnx"), ImageInput(TRANSFORM)
    batch = {"image": torch.from_numpy(np.ascontiguousarray(images(BATCH, seed=3)))}
    runner = runner_of(path, seen, runtime, precision)
    assert_agree(runner, runner_of(path, seen, "eager"), batch, precision)


@pytest.mark.parametrize(("runtime", "precision"), ABLE)
@pytest.mark.parametrize("batch_size", ["batch", 1, 3, BATCH, 9])
def test_outputs_for_features_are_those_of_the_reference(
    tmp_path: Path, batch_size: int | str, runtime: str, precision: str
):
    path = onnx_files.save(onnx_files.features_model(batch_size), tmp_path / "m.onnx")
    seen = FeatureInput(onnx_files.NUM_FEATURES)
    runner = runner_of(path, seen, runtime, precision)
    sizes = [BATCH] if runner.is_static else [BATCH, 1, 7]
    for size in sizes:
        batch = {"features": torch.rand((size, onnx_files.NUM_FEATURES), generator=SEEDED)}
        assert_agree(runner, runner_of(path, seen, "eager"), batch, precision)


@pytest.mark.parametrize(("runtime", "precision"), ABLE)
def test_weights_beside_the_file_are_found(tmp_path: Path, runtime: str, precision: str):
    path = onnx_files.save_apart(onnx_files.features_model(), tmp_path / "m.onnx")
    whole = onnx_files.save(onnx.load(path), tmp_path / "whole.onnx")
    seen = FeatureInput(onnx_files.NUM_FEATURES)
    batch = {"features": torch.rand((BATCH, onnx_files.NUM_FEATURES), generator=SEEDED)}
    runner, expected = runner_of(path, seen, runtime, precision), runner_of(whole, seen, "eager")
    assert_agree(runner, expected, batch, precision)


@pytest.mark.parametrize("runtime", UNABLE)
def test_a_runtime_that_needs_a_torch_module_says_so(tmp_path: Path, runtime: str):
    if reason := missing_reason(runtime_of(runtime), "fp32", is_on_gpu=False):
        pytest.skip(reason)
    path = onnx_files.save(onnx_files.features_model(), tmp_path / "m.onnx")
    with pytest.raises(JobError, match="none: it needs a torch module"):
        runner_of(path, FeatureInput(onnx_files.NUM_FEATURES), runtime)


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime", "openvino"])
def test_a_broken_file_is_one_line_with_the_library_s_reason(tmp_path: Path, runtime: str):
    model = onnx_files.features_model()
    module = OnnxModule.of(onnx_files.save(model, tmp_path / "m.onnx"))
    model.graph.initializer[0].dims[0] = 1 << 40  # a shape that the data do not have
    onnx_files.save(model, tmp_path / "m.onnx")
    with pytest.raises(JobError, match=f"model.runtime = '{runtime}': cannot run this model: "):
        runner_of(module, FeatureInput(onnx_files.NUM_FEATURES), runtime)


def test_a_file_is_not_exported_for_calibration(tmp_path: Path):
    path = onnx_files.save(onnx_files.features_model(), tmp_path / "m.onnx")
    seen = FeatureInput(onnx_files.NUM_FEATURES)
    whole = InferenceModule(OnnxModule.of(path), seen, torch.float32)
    example = {"features": torch.zeros((BATCH, onnx_files.NUM_FEATURES))}
    with pytest.raises(JobError, match=r"is an \.onnx file, which is run directly"):
        Exporter(lambda: whole, example, None).onnx()


def test_other_precisions_are_refused(tmp_path: Path):
    path = onnx_files.save(onnx_files.features_model(), tmp_path / "m.onnx")
    words = "precision 'bf16': the model is an .onnx file, which this runtime runs .*: fp32"
    with pytest.raises(JobError, match=words):
        runner_of(path, FeatureInput(onnx_files.NUM_FEATURES), "eager", "bf16")


def test_probabilities_in_front_of_a_zipmap_come_from_the_optimised_graph_as_well(tmp_path: Path):
    path = onnx_files.save(onnx_files.classifier(), tmp_path / "m.onnx")
    seen = FeatureInput(onnx_files.NUM_FEATURES)
    batch = {"features": torch.rand((BATCH, onnx_files.NUM_FEATURES), generator=SEEDED)}
    expected = runner_of(path, seen, "eager").run(batch)
    outputs = runner_of(path, seen, "onnxruntime").run(batch)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(outputs.sum(dim=1), torch.ones(BATCH))


def test_a_runtime_without_the_operators_of_a_file_names_them(tmp_path: Path):
    path = onnx_files.save(onnx_files.classifier(), tmp_path / "m.onnx")
    message = r"lacks operators of m\.onnx: ai\.onnx\.ml\.LinearClassifier.*; onnxruntime has them"
    with pytest.raises(JobError, match=message) as caught:
        runner_of(path, FeatureInput(onnx_files.NUM_FEATURES), "openvino")
    assert "\n" not in str(caught.value)


CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
ON_CPU = torch.device("cpu")


class Opened:
    """A session, as far as what it runs on."""

    def __init__(self, *providers: str) -> None:
        self.get_providers = lambda: [*providers]


def session_of(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=[CPU])


def test_a_session_that_fell_back_to_the_cpu_is_refused():
    require_on_gpu(Opened(CUDA, CPU))
    with pytest.raises(JobError, match=r"CUDA provider could not be opened.*the GPU is idle") as e:
        require_on_gpu(Opened(CPU))
    assert "\n" not in str(e.value)


def test_fp32_is_fp32_and_an_actor_that_shares_a_card_keeps_to_its_share():
    whole, half = cuda_options(1, 77, 1.0, 1 << 30), cuda_options(1, 77, 0.5, 1 << 30)
    assert whole == {"device_id": "1", "user_compute_stream": "77", "use_tf32": "0"}
    assert half == {
        **whole, "gpu_mem_limit": str(1 << 29), "arena_extend_strategy": "kSameAsRequested"
    }  # fmt: skip


@pytest.mark.parametrize("num_rows", [1, 5])
def test_a_session_reads_and_writes_the_memory_of_tensors(tmp_path: Path, num_rows: int):
    path = onnx_files.save(onnx_files.features_model(), tmp_path / "m.onnx")
    session = session_of(path)
    (name,) = (value.name for value in session.get_inputs())
    outputs = [value.name for value in session.get_outputs()]
    values = torch.rand((num_rows, onnx_files.NUM_FEATURES))
    run = bound(session, outputs, ON_CPU)
    results = run({name: values})
    again = run({name: torch.zeros_like(values)})
    for one, wanted in zip(results, session.run(outputs, {name: values.numpy()}), strict=True):
        # Earlier outputs are not overwritten by later batches.
        np.testing.assert_array_equal(one.numpy(), wanted)
    assert not torch.equal(again[0], results[0])
    turned = values.T.contiguous().T
    assert not turned.is_contiguous() or num_rows == 1
    assert torch.equal(run({name: turned})[0], results[0])
