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
    """The module compiled for batches of one shape, in torch's own cache."""

    name = "compile"
    precisions = {"fp32": BOTH, "tf32": GPU, "bf16": BOTH, "fp16": GPU}  # noqa: RUF012
    trial_order = 40
    exports = False
    # On a CPU MiniLM took three minutes to compile, and then was slower than eager.
    tries_varying = GPU
    autotunes = GPU
    mode = "max-autotune"
    """Mode of torch for batches of one shape on a GPU: CUDA graphs with autotuned kernels."""

    def open(
        self, exporter: Exporter, precision: str, num_threads: int, calibrated: bytes | None
    ) -> Runner:
        made: list[Runner] = []

        def write(folder: Path, flat: FlatOutputs) -> None:
            made.append(_compiled(exporter, self.mode, num_threads))

        # The folder stays empty: it makes the other processes of the node wait for the first one,
        # whose compiled code is then in torch's own cache.
        device = "gpu" if exporter.is_on_gpu else "cpu"
        how = "" if self.autotunes else " quickly"
        exporter.folder(f"compiled{how} for {num_threads} on {device} in {precision}", write)
        return made[0] if made else _compiled(exporter, self.mode, num_threads)


class CompileQuick(Compile):
    """The same without autotuning, for batches of one shape on a GPU."""

    name = "compile-quick"
    precisions = {"fp32": GPU, "tf32": GPU, "bf16": GPU, "fp16": GPU}  # noqa: RUF012
    trial_order = 35
    takes_varying = False  # `compile` does the same for them
    autotunes = ()
    mode = "reduce-overhead"


def _compiled(exporter: Exporter, mode: str, num_threads: int) -> Runner:
    if exporter.is_on_gpu:
        # The compiler reads it on import; by default it starts a process per core of the node.
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
