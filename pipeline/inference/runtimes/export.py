"""Export a module once per node, and keep the structure of its outputs."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline.core.errors import JobError
from pipeline.core.node_cache import cached_folder, key_of
from pipeline.inference import output_tree as pytree
from pipeline.inference.runtimes.inference_module import InferenceModule, Tensors
from pipeline.models.onnx_module import OnnxModule
from pipeline.preprocessing.texts.text_settings import TENSORS

_STRUCTURE = "structure.json"
_FORM, _ONNX, _TORCH = "form", "onnx", "torch"
_ONNX_PACKAGES = ("onnx", "onnxscript")
_ONNX_INT64, _ONNX_BOOL = 7, 9
"""Types of ONNX (onnx.TensorProto)."""
"""What the names of tensors of texts end with; before it is the name of one of several texts."""
Varying = Mapping[str, tuple[int, ...]]
"""Input name -> axes of its tensor whose sizes vary between batches."""


def _size_name(name: str, axis: int) -> str:
    """Return the name of an axis's size; sizes of one name are equal in every batch."""
    if not axis:
        return "size_0"
    of = [name.removesuffix(tensor) for tensor in TENSORS if name.endswith(tensor)]
    return f"size_{axis}_{of[0] if of else name}"


class FlatOutputs(torch.nn.Module):
    """A module whose outputs are flattened to a tuple of tensors."""

    def __init__(self, module: InferenceModule) -> None:
        super().__init__()
        self.inner = module

    def forward(self, batch: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(pytree.tree_leaves(self.inner(batch, *others)))


def _all_true(values: Any) -> Any:
    """Translate an operator by which some detectors check shapes; torch's exporter lacks it."""
    from onnxscript import opset18

    op: Any = opset18  # its type hints are too strict
    ones = op.Cast(values, to=_ONNX_INT64)
    return op.Cast(op.ReduceMin(ones, keepdims=0), to=_ONNX_BOOL)


@dataclass(frozen=True)
class Exporter:
    """Provides a runtime with the module, or with an exported model from the node cache."""

    load: Callable[[], InferenceModule]
    example: Tensors
    """A full batch on the device, in the shapes and dtypes of `Input.slots`; the values do not
    matter."""
    identity: str | None
    """Text that identifies the module's outputs; None: its tensors are digested."""
    packages: tuple[str, ...] = ()
    """Distributions whose versions are part of the cache key."""
    varying: Varying = field(default_factory=dict)
    """Axes whose sizes vary between batches; otherwise all batches are like `example`."""

    def folder(
        self,
        form: str,
        write: Callable[[Path, FlatOutputs], None],
        packages: tuple[str, ...] | None = None,
    ) -> Path:
        """Return the cached folder of an exported model, written by `write` if it is missing.

        Args:
            form: Name of the exported form.
            write: Writes the form into an empty folder.
            packages: Modules that it depends on; None: the runtime's.
        """
        packages = self.packages if packages is None else packages
        # The exported model depends on order, shape and dtype of the tensors, not on their names.
        batch: list[Any] = [
            form,
            *(x for t in self.tensors() for x in (list(t.shape), str(t.dtype))),
        ]
        batch += [[name, *axes] for name, axes in self.varying.items() if axes]
        if self.identity is not None:
            key = key_of([self.identity, *batch], packages)
        else:
            key = key_of([self.load().identity, *batch], packages, self.load())

        def make(folder: Path) -> None:
            with torch.no_grad():
                write(folder, FlatOutputs(self.load()).eval())

        return cached_folder(key, make)

    @property
    def is_varying(self) -> bool:
        """Tell whether the shapes of batches vary."""
        return any(self.varying.values())

    def shapes(self) -> list[list[int]]:
        """Return the shape of each tensor in order, -1 for varying axes."""
        return [
            [
                -1 if axis in self.varying.get(name, ()) else size
                for axis, size in enumerate(t.shape)
            ]
            for name, t in self.example.items()
        ]

    def _symbolic_shapes(self) -> tuple[Any, ...] | None:
        """Return the dynamic shapes for torch.export.

        All tensors have the same number of rows, and all tensors of a text the same length.
        """
        if not self.is_varying:
            return None
        names = {
            (n, axis): _size_name(n, axis) for n, axes in self.varying.items() for axis in axes
        }
        sizes = {size: torch.export.Dim(size) for size in names.values()}
        first, *others = (
            {axis: sizes[names[name, axis]] for axis in self.varying.get(name, ())}
            for name in self.example
        )
        # In the form of the arguments of `FlatOutputs.forward`.
        return (first, tuple(others)) if others else (first,)

    @property
    def is_on_gpu(self) -> bool:
        """Tell whether the batches are on a GPU."""
        return any(tensor.is_cuda for tensor in self.example.values())

    def tensors(self, size: int | None = None) -> tuple[torch.Tensor, ...]:
        """Return the first rows of the example's tensors in order, each (size, ...); None: all."""
        return tuple(tensor[:size] for tensor in self.example.values())

    def structure(self) -> pytree.TreeSpec:
        """Return the structure of the outputs."""

        def write(folder: Path, flat: FlatOutputs) -> None:
            text = pytree.treespec_dumps(self._structure())
            (folder / _STRUCTURE).write_text(text)

        try:
            folder = self.folder("structure", write, ())
            return pytree.treespec_loads((folder / _STRUCTURE).read_text())
        except NotImplementedError:  # a container without a text form
            return self._structure()

    def _structure(self) -> pytree.TreeSpec:
        with torch.no_grad():
            return pytree.tree_flatten(self.load()(*self.tensors(1)))[1]

    def has_file(self) -> bool:
        """Tell whether the module is an .onnx file already, so that nothing is exported.

        The node cache keeps the answer, so that only one actor loads the module for it.
        """

        def write(folder: Path, flat: FlatOutputs) -> None:
            is_file = isinstance(flat.inner.module, OnnxModule)
            (folder / _FORM).write_text(_ONNX if is_file else _TORCH)

        return (self.folder("form", write, ()) / _FORM).read_text() == _ONNX

    def onnx(self) -> Path:
        """Return the ONNX file of the module, for batches like the example.

        Raises:
            JobError: The module is an .onnx file, which lacks the normalisation before it.
        """
        if self.has_file():
            raise JobError("the model is an .onnx file, which is run directly, not exported again")

        def export(folder: Path, flat: FlatOutputs) -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                program = torch.onnx.export(
                    flat,
                    self.tensors(),
                    dynamo=True,
                    verbose=False,
                    dynamic_shapes=self._symbolic_shapes(),
                    custom_translation_table={torch.ops.aten._is_all_true.default: _all_true},
                )
            assert program is not None, "the dynamo exporter returns a program"
            program.save(folder / "model.onnx")

        return self.folder("onnx", export, _ONNX_PACKAGES) / "model.onnx"
