"""What is asked of CUDA itself: events that let the core sleep, a share of the memory."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from pipeline.execution.environment import set_gpu_allocator
from pipeline.inference.devices import accelerator
from pipeline.inference.devices.accelerator import Gpu, memory_fraction

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
