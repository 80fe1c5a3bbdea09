"""Linear layers whose weights are laid out once: the same results, or the layers as they were."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from pipeline.inference.runtimes import packed_linear
from pipeline.inference.runtimes.packed_linear import PackedLinear, pack_linear_layers

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
