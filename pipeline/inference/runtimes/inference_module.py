"""The module that a runtime runs: normalisation, the model, and the chosen layer.

It takes the tensors of a batch on the device, each (B, ...), and returns the model's outputs.
Normalisation is included so that a compiler can fold it into the first convolution.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from pipeline.core.errors import JobError
from pipeline.preprocessing.composite_input import require_every_input_used
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
            identity: Text that identifies the outputs together with the tensors, as the code's
                digest.

        Raises:
            JobError: The module's `forward` does not fit the tensors of the input.
        """
        super().__init__()
        self.identity = f"{identity} {layer} {seen}"
        self.module = module
        self.normaliser = seen.normaliser(dtype)
        self._names = tuple(seen.slots(BatchLimits(1)))
        self._taken = taken_names(module, self._names)
        require_every_input_used(seen, self._taken, f"forward of {type(module).__name__}")
        self._has_layer = layer is not None
        self._caught: Any = None
        if layer is not None:
            module.get_submodule(layer).register_forward_hook(self._catch)

    def forward(self, batch: torch.Tensor, *others: torch.Tensor) -> Any:
        """Return the outputs of a batch, its tensors (B, ...) in the order of the input's names.

        A model of several tensors gets the ones that its `forward` takes, by name.
        """
        prepared = self.normaliser(batch, *others)
        if others:
            named = dict(zip(self._names, prepared, strict=True))
            outputs = self.module(**{name: named[name] for name in self._taken})
        else:
            outputs = self.module(*prepared)
        if not self._has_layer:
            return outputs
        caught, self._caught = self._caught, None
        return caught

    def prepared(self, batch: Tensors) -> dict[str, torch.Tensor]:
        """Return the tensors of a batch as the model takes them, by the names of the input."""
        return dict(zip(self._names, self.normaliser(*batch.values()), strict=True))

    def run(self, batch: Tensors) -> Any:
        """Return the outputs of a batch whose tensors are given by name."""
        return self(*batch.values())

    def _catch(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        self._caught = output


def taken_names(module: torch.nn.Module, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the tensors of an input that a module's `forward` takes, in their order.

    A module whose inputs are known only at run time lists them in `input_names`, and the optional
    ones in `optional_names`; otherwise the signature of `forward` decides. A module of one tensor
    gets it by position, whatever the name of the parameter.

    Args:
        module: The model.
        names: The tensors of the input.

    Raises:
        JobError: `forward` requires another argument, or takes none of several tensors.
    """
    required, takes = _parameters(module)
    missing, taken = required[1:], names
    if len(names) > 1:
        missing = [name for name in required if name not in names]
        taken = tuple(name for name in names if takes is None or name in takes)
    prefix = f"model: forward of {type(module).__name__}"
    has = f"the input has {', '.join(names)}"
    if missing:
        raise JobError(f"{prefix} needs {', '.join(missing)}, and {has}")
    if not taken:
        raise JobError(f"{prefix} takes {', '.join(takes or ()) or 'no tensor by name'}, and {has}")
    return taken


def _parameters(module: torch.nn.Module) -> tuple[list[str], list[str] | None]:
    """Return the arguments that `forward` requires and takes by name; None: it takes any name."""
    names = getattr(module, "input_names", None)
    if isinstance(names, tuple) and all(isinstance(name, str) for name in names):
        optional = getattr(module, "optional_names", ())
        return [name for name in names if name not in optional], [*names]
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # compiled code may have no signature
        return [], None
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in several]
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return required, None
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return required, [p.name for p in parameters if p.kind in by_name]
