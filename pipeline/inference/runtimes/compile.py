"""Runtimes `compile` and `compile-quick`: torch.compile, on a GPU with autotuning and without."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.inference.runtimes.runtime import BOTH, GPU, Runner, Runtime

if TYPE_CHECKING:
    from pipeline.inference.runtimes.export import Exporter, FlatOutputs
    from pipeline.inference.runtimes.inference_module import Tensors


class Compile(Runtime):
    """The module, compiled for batches of one shape; torch has a cache of its own."""

    name = "compile"
    precisions = {"fp32": BOTH, "tf32": GPU, "bf16": BOTH, "fp16": GPU}  # noqa: RUF012
    trial_order = 40
    exports = False
    # On a CPU MiniLM took three minutes to compile, and was then slower than eager.
    tries_varying = GPU
    autotunes = GPU
    mode = "max-autotune"
    """torch's, for batches of one shape on a GPU: CUDA graphs, of kernels that it times first."""

    def open(
        self, exporter: Exporter, precision: str, num_threads: int, calibrated: bytes | None
    ) -> Runner:
        made: list[Runner] = []

        def write(folder: Path, flat: FlatOutputs) -> None:
            made.append(_compiled(exporter, self.mode, num_threads))

        # The folder stays empty: torch keeps on the disk what the first process of a node compiled,
        # and the others, which wait for it, find it there all at the same time.
        device = "gpu" if exporter.is_on_gpu else "cpu"
        how = "" if self.autotunes else " quickly"
        exporter.folder(f"compiled{how} for {num_threads} on {device} in {precision}", write)
        return made[0] if made else _compiled(exporter, self.mode, num_threads)


class CompileQuick(Compile):
    """The same for batches of one shape on a GPU, with the kernels that torch takes by default."""

    name = "compile-quick"
    precisions = {"fp32": GPU, "tf32": GPU, "bf16": GPU, "fp16": GPU}  # noqa: RUF012
    trial_order = 35
    takes_varying = False  # for these `compile` does the same
    autotunes = ()
    mode = "reduce-overhead"


def _compiled(exporter: Exporter, mode: str, num_threads: int) -> Runner:
    if exporter.is_on_gpu:
        # Read when the compiler is imported; by default it starts a process per core of the node.
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(num_threads))
    import torch

    module = exporter.load()
    if exporter.is_varying:  # one graph for all shapes; CUDA graphs would need one per shape
        options: dict[str, Any] = {} if exporter.is_on_gpu else {"freezing": True}
        run = torch.compile(module, dynamic=True, options=options)
    elif exporter.is_on_gpu:
        run = torch.compile(module, dynamic=False, mode=mode)
    else:
        run = torch.compile(module, dynamic=False, options={"freezing": True})
    with torch.no_grad():  # freezing folds weights only without gradients
        run(*exporter.tensors())

    def call(batch: Tensors) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            return run(*batch.values())

    return Runner(call, is_static=not exporter.is_varying)


RUNTIME = Compile()
QUICK = CompileQuick()
