"""What a runtime makes of a module, once a node: exported, and the structure of its outputs."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.core.node_cache import kept, key_of
from pipeline.inference import output_tree as pytree
from pipeline.inference.runtimes.inference_module import Whole

_STRUCTURE = "structure.json"


class Flat(torch.nn.Module):
    """A module whose outputs are a tuple of tensors, whatever the structure they come in."""

    def __init__(self, whole: Whole) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(pytree.tree_leaves(self.whole(batch)))


@dataclass(frozen=True)
class Made:
    """A module that a runtime makes something of, once a node."""

    load: Callable[[], Whole]
    example: torch.Tensor
    """A whole batch on the device; what it holds does not matter."""
    identity: str | None
    """All that decides the module's outputs; None where only its tensors tell."""

    def folder(self, kind: str, write: Callable[[Path, Flat], None]) -> Path:
        """Return the folder of what was made, which `write` fills if there is none."""
        batch = [kind, list(self.example.shape), str(self.example.dtype)]
        if self.identity is not None:
            key = key_of([self.identity, *batch])
        else:
            key = key_of([self.load().identity, *batch], self.load())

        def make(folder: Path) -> None:
            with torch.no_grad():
                write(folder, Flat(self.load()).eval())

        return kept(key, make)

    def structure(self) -> pytree.TreeSpec:
        """Return the structure of the outputs."""

        def write(folder: Path, flat: Flat) -> None:
            text = pytree.treespec_dumps(self._structure())
            (folder / _STRUCTURE).write_text(text)

        try:
            folder = self.folder("structure", write)
            return pytree.treespec_loads((folder / _STRUCTURE).read_text())
        except NotImplementedError:  # a container that only its own code knows
            return self._structure()

    def _structure(self) -> pytree.TreeSpec:
        with torch.no_grad():
            return pytree.tree_flatten(self.load()(self.example[:1]))[1]

    def onnx(self) -> Path:
        """Return the ONNX file of the module, for batches like the example."""

        def export(folder: Path, flat: Flat) -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                program = torch.onnx.export(flat, (self.example,), dynamo=True, verbose=False)
            assert program is not None, "the dynamo exporter returns a program"
            program.save(folder / "model.onnx")

        return self.folder("onnx", export) / "model.onnx"
