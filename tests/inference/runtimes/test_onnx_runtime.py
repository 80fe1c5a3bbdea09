"""onnxruntime runs on the GPU or says that it does not, and reads tensors where they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from support.models import onnx_files

from pipeline.core.errors import JobError
from pipeline.inference.runtimes.onnx_runtime import bound, cuda_options, require_on_gpu

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
