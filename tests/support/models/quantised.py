"""Small language models with quantised weights, in the formats that their tools publish."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

_GROUP = 32
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_BITS_8: Mapping[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True}
_TOKENS = {**_BITS_8, "dynamic": True, "strategy": "token"}
_ROWS = {**_BITS_8, "dynamic": False, "strategy": "channel"}
_GROUPS = {**_ROWS, "num_bits": 4, "strategy": "group", "group_size": _GROUP}
Tensors = dict[str, torch.Tensor]


def quantise(folder: Path, how: str) -> Tensors:
    """Quantise the layers of a float model in its folder; return the weights that it has now.

    Args:
        folder: Of `make_writer`.
        how: A key of QUANTISERS.
    """
    config, quantise_one = QUANTISERS[how]
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    made, kept = Tensors(), Tensors()
    for name, weight in tensors.items():
        kept[name] = weight
        if weight.ndim != 2 or "embed" in name or "lm_head" in name:
            made[name] = weight
            continue
        stem = name.removesuffix("weight")
        kept[name], parts = quantise_one(weight)
        made |= {stem + part: values.contiguous() for part, values in parts.items()}
    safetensors.torch.save_file(made, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "quantization_config": dict(config)}))
    return kept


def _packed(numbers: torch.Tensor, axis: int) -> torch.Tensor:
    """Put each eight numbers of an axis, 0 to 15, into one, the first into the lowest bits."""
    eights = numbers.unflatten(axis, (-1, 8)).to(torch.int64)
    bits = (4 * torch.arange(8)).view([-1 if n == axis + 1 else 1 for n in range(eights.ndim)])
    return (eights << bits).sum(axis + 1).to(torch.int32)


def _four_bits(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the weight that is left, its numbers 0 to 15, (O, I), and scales, (O, I / 32)."""
    groups = weight.unflatten(1, (-1, _GROUP))
    scales = torch.exp2((groups.abs().amax(2) / 7).log2().ceil())  # bf16 holds such ones
    numbers = (groups / scales[:, :, None]).round()
    return (numbers * scales[:, :, None]).flatten(1), (numbers + 8).flatten(1), scales


def _awq(weight: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
    left, numbers, scales = _four_bits(weight)
    columns = numbers.T.unflatten(1, (-1, 8))[:, :, [*_AWQ_ORDER]].flatten(1)
    zeros = torch.full_like(scales.T, 8)
    return left, {"qweight": _packed(columns, 1), "qzeros": _packed(zeros, 1), "scales": scales.T}


def _gptq(weight: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
    left, numbers, scales = _four_bits(weight)
    zeros = torch.full_like(scales.T, 7)  # stored less one
    groups = torch.arange(weight.shape[1], dtype=torch.int32) // _GROUP
    return left, {"qweight": _packed(numbers.T, 0), "qzeros": _packed(zeros, 1),
                  "scales": scales.T, "g_idx": groups}  # fmt: skip


def _w4a16(weight: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
    left, numbers, scales = _four_bits(weight)
    shape = torch.tensor(weight.shape)
    return left, {"weight_packed": _packed(numbers, 1), "weight_scale": scales,
                  "weight_shape": shape}  # fmt: skip


def _w8a8(weight: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
    scales = torch.exp2((weight.abs().amax(1, keepdim=True) / 127).log2().ceil())
    numbers = (weight / scales).round()
    return numbers * scales, {"weight": numbers.to(torch.int8), "weight_scale": scales}


def _compressed(form: str, weights: Any, activations: Any) -> Mapping[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"],
            "quantization_status": "compressed", "config_groups": {"group_0": group}}  # fmt: skip


_FOUR = {"bits": 4, "group_size": _GROUP}
QUANTISERS: Mapping[
    str, tuple[Mapping[str, Any], Callable[[torch.Tensor], tuple[torch.Tensor, Tensors]]]
] = {
    "awq": ({"quant_method": "awq", **_FOUR, "zero_point": True, "version": "gemm"}, _awq),
    "gptq": ({"quant_method": "gptq", **_FOUR, "desc_act": False, "sym": True}, _gptq),
    "w4a16": (_compressed("pack-quantized", _GROUPS, None), _w4a16),
    "w8a8": (_compressed("int-quantized", _ROWS, _TOKENS), _w8a8),
}
"""Name -> what config.json says, and what makes tensors of a weight, (O, I)."""
