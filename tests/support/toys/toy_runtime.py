"""A runtime that no code of the pipeline knows: the module, one row after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.inference.runtimes.base import CPU, Runner, Runtime
from pipeline.job.section import Section

if TYPE_CHECKING:
    from pipeline.inference.runtimes.export import Exporter
    from pipeline.inference.runtimes.inference_module import Tensors

NAME = "row-by-row"


class RowOptions(Section):
    """What a job may say in `model.runtime_options`."""

    rows: int = 1
    """How many rows the module gets at once."""


class RowByRow(Runtime):
    """float32 on the CPU."""

    Options = RowOptions
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
        assert isinstance(exporter.options, RowOptions)
        step = exporter.options.rows

        def run(batch: Tensors) -> Any:
            size = len(next(iter(batch.values())))
            rows = [
                module.run({name: tensor[row : row + step] for name, tensor in batch.items()})
                for row in range(0, size, step)
            ]
            return pytree.tree_map(lambda *values: torch.cat(values), *rows)

        return Runner(run, is_static=not exporter.is_varying)


RUNTIME = RowByRow()
