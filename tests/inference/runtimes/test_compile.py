"""torch.compile: how it is asked on a GPU, and for which shapes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.runs.predicting import images, predict, predictor, rows_of

from pipeline.inference.runtimes import runtime_of

THREADS = "TORCHINDUCTOR_COMPILE_THREADS"


@pytest.mark.parametrize(
    ("name", "mode"), [("compile", "max-autotune"), ("compile-quick", "reduce-overhead")]
)
def test_only_compile_tries_kernels_and_both_take_the_cores_of_the_actor(
    name: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[dict[str, Any]] = []

    def compiled(module: Any, **options: Any) -> Callable[..., Any]:
        asked.append(options)
        return lambda *tensors: module(*tensors)

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setenv(THREADS, "set and taken away, so that it is restored")
    monkeypatch.delenv(THREADS)
    kinds: list[str] = []

    def folder(form: str, write: Callable[[Path, Any], None]) -> None:
        kinds.append(form)
        write(tmp_path, None)

    batch = torch.ones(2, 3)
    exporter: Any = SimpleNamespace(
        **{"load": torch.nn.Identity, "folder": folder, "tensors": lambda: (batch,)},
        **{"is_on_gpu": True, "is_varying": False},
    )
    runner = runtime_of(name).open(exporter, "bf16", 3, None)
    assert asked == [{"dynamic": False, "mode": mode}]
    assert os.environ[THREADS] == "3"
    assert runner.is_static
    assert torch.equal(runner.run({"image": batch}), batch)
    [form] = kinds
    assert ("quickly" in form) is (name == "compile-quick")


def num_compiled() -> int:
    counted: dict[str, int] = torch._dynamo.utils.counters["frames"]
    return counted["ok"]


@pytest.mark.slow
def test_no_slice_is_compiled_again_for_the_rows_that_it_has():
    model = predictor("support.runs.predicting:convolved", batch_size=4, runtime="compile")
    loaded = num_compiled()
    assert loaded, "loading compiles"
    for num_rows in (7, 4, 1, 9, 2):
        predict(model, rows_of(images(num_rows)))
    assert num_compiled() == loaded
