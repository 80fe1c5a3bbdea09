"""The module that a runtime runs: normalisation, the model, and the chosen layer.

It takes the tensors of a batch on the device, each (B, ...), and returns the model's outputs.
Normalisation is a part of it, so that a compiler can fold it into the first convolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pipeline.preprocessing.model_input import BatchLimits, Input

Tensors = Mapping[str, torch.Tensor]
"""A batch: input name -> (B, ...), in the order in which the model takes them."""


class InferenceModule(torch.nn.Module):
    """Normalisation, model, and the chosen layer as one module."""

    def __init__(
        self,
        module: torch.nn.Module,
        seen: Input,
        dtype: torch.dtype,
        layer: str | None = None,
        identity: str = "",
    ) -> None:
        """Wrap a module.

        Args:
            module: The model, in eval mode.
            seen: The input of the model.
            dtype: The dtype of the model.
            layer: The submodule whose output is returned; None: the model's output.
            identity: Text that identifies the outputs beside the tensors, such as the code.
        """
        super().__init__()
        self.identity = f"{identity} {layer} {seen}"
        self.module = module
        self.normaliser = seen.normaliser(dtype)
        self._names = tuple(seen.slots(BatchLimits(1)))
        self._has_layer = layer is not None
        self._caught: Any = None
        if layer is not None:
            module.get_submodule(layer).register_forward_hook(self._catch)

    def forward(self, batch: torch.Tensor, *others: torch.Tensor) -> Any:
        """Return the outputs of a batch, its tensors (B, ...) in the order of the input's names."""
        prepared = self.normaliser(batch, *others)
        if others:
            outputs = self.module(**dict(zip(self._names, prepared, strict=True)))
        else:
            outputs = self.module(*prepared)
        if not self._has_layer:
            return outputs
        caught, self._caught = self._caught, None
        return caught

    def run(self, batch: Tensors) -> Any:
        """Return the outputs of a batch whose tensors are given by name."""
        return self(*batch.values())

    def _catch(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        self._caught = output
