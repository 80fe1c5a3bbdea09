"""onnxruntime runs on the GPU or says that it does not, and reads tensors where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from support.models import onnx_files

from pipeline.core.errors import JobError
from pipeline.inference.runtimes.onnx_binding import bound
from pipeline.inference.runtimes.onnx_runtime import cuda_options, require_on_gpu
from pipeline.models.directories.onnx.file import read_onnx_facts
from pipeline.models.onnx_module import OnnxModule

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
    (name,) = (each.name for each in session.get_inputs())
    outputs = [each.name for each in session.get_outputs()]
    values = torch.rand((num_rows, onnx_files.NUM_FEATURES))
    run = bound(session, outputs, ON_CPU)
    found = run({name: values})
    again = run({name: torch.zeros_like(values)})
    for one, wanted in zip(found, session.run(outputs, {name: values.numpy()}), strict=True):
        # Earlier outputs are not overwritten by later batches.
        np.testing.assert_array_equal(one.numpy(), wanted)
    assert not torch.equal(again[0], found[0])
    turned = values.T.contiguous().T
    assert not turned.is_contiguous() or num_rows == 1
    assert torch.equal(run({name: turned})[0], found[0])


def opened(path: Path, *, on_device: bool) -> OnnxModule:
    module, session = OnnxModule(path, read_onnx_facts(path).module), session_of(path)
    if on_device:
        module.open_on_device(bound(session, module.output_names, ON_CPU))
    else:
        module.open(lambda feeds: session.run(list(module.output_names), feeds))
    return module


def assert_same(path: Path, batch: Mapping[str, torch.Tensor]) -> None:
    found, wanted = (opened(path, on_device=each)(**batch) for each in (True, False))
    found, wanted = (each if isinstance(each, dict) else {"": each} for each in (found, wanted))
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        assert torch.equal(found[name], values)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_images_of_a_file_stay_on_the_device(tmp_path: Path, layout: str):
    path = onnx_files.save(onnx_files.image_model(32, layout=layout), tmp_path / "m.onnx")
    (name,) = OnnxModule(path, read_onnx_facts(path).module).input_names
    assert_same(path, {name: torch.rand((5, 3, 32, 32))})


@pytest.mark.parametrize("batch_size", ["batch", 1, 3, 5, 9])
def test_features_of_a_file_stay_on_the_device(tmp_path: Path, batch_size: int | str):
    path = onnx_files.save(onnx_files.features_model(batch_size), tmp_path / "m.onnx")
    (name,) = OnnxModule(path, read_onnx_facts(path).module).input_names
    assert_same(path, {name: torch.rand((5, onnx_files.NUM_FEATURES))})


@pytest.mark.parametrize("length", ["length", 6, 8])
def test_texts_of_a_file_are_padded_and_cut_on_the_device(tmp_path: Path, length: int | str):
    path = onnx_files.save(onnx_files.text_model(length=length), tmp_path / "m.onnx")
    ids = torch.arange(18).reshape(3, 6) % onnx_files.VOCABULARY
    assert_same(path, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
