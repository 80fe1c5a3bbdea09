"""A runtime that no code of the pipeline knows: the module, one row after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.inference.runtimes.base import CPU, Runner, Runtime

if TYPE_CHECKING:
    from pipeline.inference.runtimes.export import Exporter
    from pipeline.inference.runtimes.inference_module import Tensors

NAME = "row-by-row"


class RowByRow(Runtime):
    """float32 on the CPU."""

    name = NAME
    precisions = {"fp32": CPU}  # noqa: RUF012
    trial_order = 90
    exports = False
    num_opened = 0
    """How often this process has opened a model."""

    def open(
        self, exporter: Exporter, precision: str, num_threads: int, calibrated: bytes | None
    ) -> Runner:
        import torch
        from torch.utils import _pytree as pytree

        self.num_opened += 1
        module = exporter.load()

        def run(batch: Tensors) -> Any:
            size = len(next(iter(batch.values())))
            rows = [
                module.run({name: tensor[row : row + 1] for name, tensor in batch.items()})
                for row in range(size)
            ]
            return pytree.tree_map(lambda *values: torch.cat(values), *rows)

        return Runner(run, is_static=not exporter.is_varying)


RUNTIME = RowByRow()
