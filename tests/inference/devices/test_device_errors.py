"""What errors of a device mean, whichever library words them."""

from __future__ import annotations

import socket

import pytest
import torch

from pipeline.core.errors import InfraError
from pipeline.inference.devices import device_errors
from pipeline.inference.devices.device_errors import (
    OutOfDeviceMemory,
    is_out_of_memory,
    require_context,
)


class RuntimeException(Exception):
    """As onnxruntime's: no RuntimeError."""


NO_MEMORY = [
    torch.OutOfMemoryError("asked for too much"),
    MemoryError(),
    OutOfDeviceMemory("a batch of 4 rows does not fit"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeException("BFCArena: Failed to allocate memory for requested buffer of size 4"),
    RuntimeException("CUDA failure 2: out of memory ; GPU=0 ; hostname=n1"),
    RuntimeException("std::bad_alloc"),
]
OTHERS = [
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    RuntimeException("CUDA failure 700: an illegal memory access was encountered"),
    ValueError("memory"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
def test_lack_of_memory_is_told_from_any_librarys_words(error: Exception):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_are_no_lack_of_memory(error: Exception):
    assert not is_out_of_memory(error)


def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    codes: list[int] = []
    monkeypatch.setattr(device_errors.os, "_exit", codes.append)
    return codes


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: uncorrectable ECC error encountered",
        "NVRM: Xid 79",
        "GPU has fallen off the bus",
        "the GPU fell off the bus",
        "CUDA error: no CUDA-capable device is detected",
    ],
)
def test_broken_hardware_names_node_and_card_and_ends_the_run(
    words: str, monkeypatch: pytest.MonkeyPatch
):
    codes = ended(monkeypatch)

    def probe() -> None:
        raise RuntimeError(words)

    for error in (RuntimeError(words), RuntimeError("CUDA error: unspecified launch failure")):
        with pytest.raises(InfraError, match=f"^L4 of {socket.gethostname()} has failed"):
            require_context(error, probe, "L4")
    assert not codes


def test_a_lost_context_ends_the_process_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    codes = ended(monkeypatch)
    error = RuntimeError("CUDA error: device-side assert triggered\nCompile with it")

    def probe() -> None:
        raise error

    require_context(error, probe, "L4")
    assert codes == [1]
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith(f"L4 of {socket.gethostname()}: its CUDA context is lost (RuntimeError:")


def test_an_error_that_leaves_the_context_alive_is_the_callers(monkeypatch: pytest.MonkeyPatch):
    codes = ended(monkeypatch)
    require_context(KeyError("xid"), lambda: None)
    assert not codes
