"""What a runtime runs: normalisation, the module, and the layer that is watched, as one module.

It takes a batch as it lies on the device, uint8 (B, S, S, 3) or float32 (B, F), and returns what
the module returns. Normalisation is a part of it, so that a compiler can fold it into the first
convolution.
"""

from __future__ import annotations

from typing import Any

import torch

from pipeline.preprocessing.transform import TransformSpec


class InferenceModule(torch.nn.Module):
    """Normalisation, module, and the layer that is watched, as one module."""

    def __init__(
        self,
        module: torch.nn.Module,
        transform: TransformSpec | None,
        dtype: torch.dtype,
        layer: str | None = None,
        identity: str = "",
    ) -> None:
        """Wrap a module.

        Args:
            module: In eval mode.
            transform: None if the input is features.
            dtype: The module's type.
            layer: One of its submodules; None takes the module's own output.
            identity: What else than its tensors decides the outputs: its code, say.
        """
        super().__init__()
        self.identity = f"{identity} {layer} {transform}"
        self.module = module
        self._dtype = dtype
        self._has_images = transform is not None
        self._has_layer = layer is not None
        self._caught: Any = None
        if layer is not None:
            module.get_submodule(layer).register_forward_hook(self._catch)
        if transform is not None:
            mean = torch.tensor(transform.mean).view(1, 3, 1, 1)
            std = torch.tensor(transform.std).view(1, 3, 1, 1)
            # /255, mean and std folded into x * scale + shift; float32 whatever the model's type.
            self.register_buffer("scale", 1.0 / (255.0 * std), persistent=False)
            self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, batch: torch.Tensor) -> Any:
        """Return the outputs of a batch."""
        outputs = self.module(self._normalised(batch))
        if not self._has_layer:
            return outputs
        caught, self._caught = self._caught, None
        return caught

    def _normalised(self, batch: torch.Tensor) -> torch.Tensor:
        if not self._has_images:
            return batch.to(self._dtype)
        # NHWC memory seen as NCHW is channels_last already: no transpose is made.
        x = batch.permute(0, 3, 1, 2).to(torch.float32)
        shift, scale = self.get_buffer("shift"), self.get_buffer("scale")
        return torch.addcmul(shift, x, scale).to(self._dtype)

    def _catch(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        self._caught = output
