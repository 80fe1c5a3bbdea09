"""Test torch's runtimes: exact float32, compiled modules and packed linear layers."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.runs.predicting import images, predict, predictor, rows_of
from torch import nn

from pipeline.inference.runtimes import make_runner, packed_linear, runtime_of
from pipeline.inference.runtimes.make_runner import exact_math, set_math
from pipeline.inference.runtimes.packed_linear import PackedLinear, pack_linear_layers
from pipeline.inference.runtimes.runtime import EXACT, TF32, math_of

backends = torch.backends


def old_names() -> None:
    backends.cuda.matmul.allow_tf32 = True
    backends.cudnn.allow_tf32 = True


def set_all(value: str) -> None:
    backends.fp32_precision = value


def set_every_flag() -> None:
    backends.cuda.matmul.fp32_precision = TF32
    backends.cudnn.conv.fp32_precision = TF32
    backends.cudnn.rnn.fp32_precision = TF32


def set_cudnn() -> None:
    backends.cudnn.fp32_precision = TF32


WAYS = {
    "as torch begins": lambda: None,
    "old names": old_names,
    "all": lambda: set_all(TF32),
    "each": set_every_flag,
    "cudnn": set_cudnn,
    "matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
    "all of them": lambda: (set_all(TF32), set_every_flag(), old_names(), set_cudnn()),
}


@pytest.fixture(autouse=True)
def afterwards() -> Iterator[None]:
    yield
    set_math(EXACT)


def flags() -> list[object]:
    """All that torch itself asks before it multiplies; the names raise where they contradict."""
    return [
        backends.cuda.matmul.fp32_precision,
        backends.cudnn.conv.fp32_precision,
        backends.cudnn.rnn.fp32_precision,
        backends.cuda.matmul.allow_tf32,
        backends.cudnn.allow_tf32,
    ]


def saved_and_restored() -> None:
    """As torch's exporters do it with all flags of a library."""
    cudnn, mkldnn = backends.cudnn.set_flags(False), backends.mkldnn.set_flags(False)
    backends.mkldnn.set_flags(*mkldnn)
    backends.cudnn.set_flags(*cudnn)


def wanted(math: str) -> list[object]:
    return [math] * 3 + [math == TF32] * 2


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "tf32"])
def test_a_precision_holds_whatever_was_set_before(way: str, precision: str):
    WAYS[way]()
    for _ in range(2):
        set_math(math_of(precision))
        assert flags() == wanted(TF32 if precision == "tf32" else EXACT)
        saved_and_restored()
    if precision != "tf32":
        assert flags() == wanted(EXACT)


@pytest.mark.parametrize("way", WAYS)
def test_the_reference_is_exact_and_what_was_before_comes_back(way: str):
    set_math(TF32)
    with exact_math():
        assert flags() == wanted(EXACT)
        WAYS[way]()  # the reference runs the user's code, too
    assert flags() == wanted(TF32)
    with pytest.raises(KeyError), exact_math():
        raise KeyError
    assert flags() == wanted(TF32)


def test_a_module_that_sets_flags_while_it_is_loaded_does_not_decide(
    monkeypatch: pytest.MonkeyPatch,
):
    from support.runs.predicting import predictor

    seen: list[list[object]] = []
    forward: Callable[..., torch.Tensor] = __import__("models").Colours.forward

    def watched(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        seen.append(flags())
        return forward(self, x)

    monkeypatch.setattr("models.Colours.forward", watched)
    monkeypatch.setattr("models.Colours.train", lambda self, mode=True: (set_every_flag(), self)[1])
    from support.runs.predicting import images, predict, rows_of

    predict(predictor("models:colours"), rows_of(images(3)))
    assert seen
    assert all(flags == wanted(EXACT) for flags in seen)
    assert make_runner._math == EXACT


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


SIZES = (24, 40, 24, 7)


class Subclass(nn.Linear):
    """A layer that may do anything."""


def layers(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    pairs = itertools.pairwise(SIZES)
    linear_layers = [nn.Linear(*pair, bias=bool(number % 2)) for number, pair in enumerate(pairs)]
    return nn.Sequential(nn.Sequential(*linear_layers), Subclass(7, 3), nn.GELU()).to(dtype).eval()


def run(module: nn.Module, dtype: torch.dtype = torch.float32) -> Callable[[], torch.Tensor]:
    values = torch.randn((2, 5, SIZES[0]), generator=torch.Generator().manual_seed(1)).to(dtype)
    return lambda: module(values)


def kinds(module: nn.Module) -> set[type[nn.Module]]:
    return {type(part) for part in module.modules() if not [*part.children()]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_results_are_the_same_up_to_rounding_and_weights_exactly(dtype: torch.dtype):
    module, plain = layers(dtype), layers(dtype)
    if not pack_linear_layers(module, run(module, dtype)):
        assert kinds(module) == kinds(plain)
        pytest.skip("this processor, or this torch, has no such layers")
    assert kinds(module) == {PackedLinear, Subclass, nn.GELU}
    close = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(run(module, dtype)(), run(plain, dtype)(), rtol=close, atol=close)
    for packed, layer in zip(module[0], plain[0], strict=True):
        assert (packed.weight.dtype, packed.weight.shape) == (dtype, layer.weight.shape)
        assert torch.equal(packed.plain().weight, layer.weight)


@pytest.mark.parametrize("name", packed_linear.PRIVATE)
def test_without_a_private_name_layers_stay(name: str, monkeypatch: pytest.MonkeyPatch):
    others = [private for private in packed_linear.PRIVATE if private != name]
    monkeypatch.setattr(packed_linear, "PRIVATE", (*others, f"no_{name}"))
    module, plain = layers(), layers()
    assert not pack_linear_layers(module, run(module))
    assert kinds(module) == kinds(plain)
    assert torch.equal(run(module)(), run(plain)())


def test_a_module_that_cannot_run_so_gets_its_layers_back():
    module, plain = layers(), layers()

    def uses_weights() -> None:
        nn.functional.linear(torch.ones(1, SIZES[0]), module[0][0].weight)

    uses_weights()
    assert not pack_linear_layers(module, uses_weights)
    uses_weights()
    assert kinds(module) == kinds(plain)
    assert torch.equal(run(module)(), run(plain)())


def test_a_layer_that_gives_something_else_is_not_used():
    module, plain = layers(), layers()
    with torch.no_grad():
        module[0][1].bias[3] = torch.nan
        plain[0][1].bias[3] = torch.nan
    assert not pack_linear_layers(module, run(module))
    assert kinds(module) == kinds(plain)
