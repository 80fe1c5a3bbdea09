"""Linear layers on a CPU whose weights are packed once in the layout of oneDNN.

torch packs a weight again in each call, or multiplies by the unpacked one. If a layer gets few
rows, as in the steps of a model that writes, that takes as long as the rest. torch's functions for
packing have private names; if one is missing, or a packed layer gives another result, layers stay
unpacked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)
PRIVATE = "_reorder_linear_weight", "_linear_pointwise"
_ROWS_NEAR = 512
"""The layout depends on the rows of a call; this one is nearly the fastest for 1 to 512 rows."""
_TRIED_ROWS = 4
_ROUNDINGS = 64


class PackedLinear(nn.Module):
    """A linear layer: (..., I) -> (..., O)."""

    def __init__(self, layer: nn.Linear, pack: Callable[..., Any], run: Callable[..., Any]) -> None:
        super().__init__()
        self.bias = layer.bias
        self.weight: torch.Tensor = pack(layer.weight.detach(), _ROWS_NEAR)
        """Opaque (O, I); models read its dtype."""
        self._run = run

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self._run(values, self.weight, self.bias, "none", [], "")
        return outputs

    def plain(self) -> nn.Linear:
        """Return the unpacked layer."""
        outputs, inputs = self.weight.shape
        with torch.device("meta"):
            layer = nn.Linear(inputs, outputs, bias=self.bias is not None)
        layer.weight = nn.Parameter(self.weight.to_dense(), requires_grad=False)
        layer.bias = self.bias
        return layer.eval()


def pack_linear_layers(module: nn.Module, run: Callable[[], object]) -> bool:
    """Replace the linear layers of a module in place.

    A weight takes no more memory than before, unless another layer shares it, as an embedding may.

    Args:
        module: A module on the CPU.
        run: Runs it on some rows.

    Returns:
        Whether they are replaced: the module runs, and each layer gives the same up to rounding.
    """
    layers = [place for place in _places(module) if type(getattr(*place)) is nn.Linear]
    try:
        functions = [getattr(torch.ops.mkldnn, name) for name in PRIVATE]
        with torch.inference_mode():
            for parent, name in layers:
                setattr(parent, name, _packed(getattr(parent, name), *functions))
            run()
    except Exception as error:  # noqa: BLE001  # private functions of torch may raise anything
        log.debug("linear layers stay unpacked: %s", error)
        for parent, name in layers:
            if isinstance(layer := getattr(parent, name), PackedLinear):
                setattr(parent, name, layer.plain())
        return False
    return True


def _places(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yield each child of each module: its parent and its name."""
    for parent in module.modules():
        for name, _ in parent.named_children():
            yield parent, name


def _packed(layer: nn.Linear, pack: Callable[..., Any], run: Callable[..., Any]) -> PackedLinear:
    """Return the packed form of a layer.

    Raises:
        ValueError: It gives another result.
    """
    packed = PackedLinear(layer, pack, run)
    drawn = torch.Generator().manual_seed(0)
    values = torch.randn((_TRIED_ROWS, layer.in_features), generator=drawn).to(layer.weight.dtype)
    expected, outputs = layer(values).float(), packed(values).float()
    limit = _ROUNDINGS * torch.finfo(layer.weight.dtype).eps * expected.abs().max()
    if not (outputs - expected).abs().max() <= limit:
        raise ValueError(f"a layer {layer.in_features} x {layer.out_features} gives other results")
    return packed
