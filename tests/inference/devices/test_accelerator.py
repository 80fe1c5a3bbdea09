"""Test calls to CUDA, and the meaning of a device's errors."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
import torch

from pipeline.core.errors import InfraError
from pipeline.execution.environment import set_gpu_allocator
from pipeline.inference.devices import accelerator, device_errors
from pipeline.inference.devices.accelerator import Gpu, memory_fraction
from pipeline.inference.devices.device_errors import (
    OutOfDeviceMemory,
    is_out_of_memory,
    require_context,
)

GIB = 1 << 30
L4_BYTES = 22 * GIB


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "L4")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: object())
    return Gpu()


def test_waiting_for_an_event_leaves_the_core_to_others(gpu: Gpu, monkeypatch: pytest.MonkeyPatch):
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(torch.cuda, "Event", lambda **options: made.append(options))
    gpu.event()
    assert made == [{"enable_timing": True, "blocking": True}]


def test_one_thread_does_all_and_raises_where_it_was_asked(gpu: Gpu):
    from threading import get_ident

    there = gpu.call(get_ident)
    assert there != get_ident()
    assert gpu.call(gpu.call, get_ident) == there  # also from within
    with pytest.raises(KeyError, match="x"):
        gpu.call({}.__getitem__, "x")
    assert gpu.call(get_ident) == there


@pytest.mark.parametrize("actors", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("total_bytes", [16 * GIB, L4_BYTES, 80 * GIB])
def test_actors_that_share_a_card_and_their_contexts_fit_it(actors: int, total_bytes: int):
    fraction = memory_fraction(1 / actors, total_bytes)
    assert fraction >= 1 / actors / 2
    if total_bytes / actors > 2 * GIB:
        assert actors * (fraction * total_bytes + accelerator.CONTEXT_BYTES) <= total_bytes + 1


def test_a_share_of_the_card_is_a_share_of_its_memory(gpu: Gpu, monkeypatch: pytest.MonkeyPatch):
    asked: list[float] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (L4_BYTES, L4_BYTES))
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda part, device: asked.append(part)
    )
    gpu.take(1.0)
    assert not asked
    gpu.take(0.25)
    assert asked == [memory_fraction(0.25, L4_BYTES)]


def test_memory_of_a_gpu_grows_in_place_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
):
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    for name in names:
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    set_gpu_allocator()
    assert {os.environ[name] for name in names} == {"expandable_segments:True"}
    monkeypatch.delenv(names[0])
    monkeypatch.setenv(names[1], "max_split_size_mb:64")
    set_gpu_allocator()
    assert names[0] not in os.environ
    assert os.environ[names[1]] == "max_split_size_mb:64"


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
