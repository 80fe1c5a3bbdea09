"""Export a module once per node, and remember the structure of its outputs."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.core.node_cache import kept, key_of
from pipeline.inference import output_tree as pytree
from pipeline.inference.runtimes.inference_module import InferenceModule, Tensors

_STRUCTURE = "structure.json"
_ONNX_PACKAGES = ("onnx", "onnxscript")


class FlatOutputs(torch.nn.Module):
    """A module whose outputs are a tuple of tensors, whatever the structure they come in."""

    def __init__(self, module: InferenceModule) -> None:
        super().__init__()
        self.inner = module

    def forward(self, batch: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(pytree.tree_leaves(self.inner(batch, *others)))


@dataclass(frozen=True)
class Exporter:
    """Gives a runtime the module, or what was made of it once on this node."""

    load: Callable[[], InferenceModule]
    example: Tensors
    """A whole batch on the device, each (B, ...); what it holds does not matter."""
    identity: str | None
    """All that decides the module's outputs; None if only its tensors tell."""
    packages: tuple[str, ...] = ()
    """What the runtime makes depends on the versions of these."""

    def folder(
        self,
        kind: str,
        write: Callable[[Path, FlatOutputs], None],
        packages: tuple[str, ...] | None = None,
    ) -> Path:
        """Return the folder of what was made, which `write` fills if there is none.

        Args:
            kind: Names what is made.
            write: Makes it, in an empty folder.
            packages: What it depends on; left out: the runtime's packages.
        """
        packages = self.packages if packages is None else packages
        # Each tensor's place, shape and type; names do not reach what is made.
        batch = [kind, *(x for t in self.tensors() for x in (list(t.shape), str(t.dtype)))]
        if self.identity is not None:
            key = key_of([self.identity, *batch], packages)
        else:
            key = key_of([self.load().identity, *batch], packages, self.load())

        def make(folder: Path) -> None:
            with torch.no_grad():
                write(folder, FlatOutputs(self.load()).eval())

        return kept(key, make)

    @property
    def is_on_gpu(self) -> bool:
        """Tell whether the batches lie on a GPU."""
        return any(tensor.is_cuda for tensor in self.example.values())

    def tensors(self, size: int | None = None) -> tuple[torch.Tensor, ...]:
        """Return the example's tensors in order, of so many rows or of all."""
        return tuple(tensor[:size] for tensor in self.example.values())

    def structure(self) -> pytree.TreeSpec:
        """Return the structure of the outputs."""

        def write(folder: Path, flat: FlatOutputs) -> None:
            text = pytree.treespec_dumps(self._structure())
            (folder / _STRUCTURE).write_text(text)

        try:
            folder = self.folder("structure", write, ())
            return pytree.treespec_loads((folder / _STRUCTURE).read_text())
        except NotImplementedError:  # a container that only its own code knows
            return self._structure()

    def _structure(self) -> pytree.TreeSpec:
        with torch.no_grad():
            return pytree.tree_flatten(self.load()(*self.tensors(1)))[1]

    def onnx(self) -> Path:
        """Return the ONNX file of the module, for batches like the example."""

        def export(folder: Path, flat: FlatOutputs) -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                program = torch.onnx.export(flat, self.tensors(), dynamo=True, verbose=False)
            assert program is not None, "the dynamo exporter returns a program"
            program.save(folder / "model.onnx")

        return self.folder("onnx", export, _ONNX_PACKAGES) / "model.onnx"
