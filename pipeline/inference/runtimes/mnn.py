"""Runtime `mnn`: float32 on the CPU; Winograd convolutions need 2 to 4 times fewer products.

Only the engine and the converter of MNN are imported: `MNN.tools` imports a module that uses the
network.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.inference.runtimes.runtime import CPU, Runner, Runtime

if TYPE_CHECKING:
    from pipeline.inference.runtimes.export import Exporter, FlatOutputs
    from pipeline.inference.runtimes.inference_module import Tensors

# It runs in a process of its own, as the converter prints to stdout, and ends its process if it
# fails. It must not import modules from the working directory.
PUBLIC_CONVERTER = "import sys; from MNN.tools.mnnconvert import convert; convert(sys.argv[1:])"
"""The public converter, for versions of MNN without the private `_tools`."""
_CONVERT = f"""
try:
    import sys, MNN
    from _tools import mnnconvert
except ImportError:
    {PUBLIC_CONVERTER}
else:
    mnnconvert(sys.argv[1:])
"""
_TIED = "import ctypes, sys; sys.platform == 'linux' and ctypes.CDLL(None).prctl(1, 9)\n"
"""Ends the process with its actor, as `tied` does, which cannot be imported there."""
_CONVERT_S = 600.0
_FILE = "model.mnn"

Outputs = list[npt.NDArray[Any]]


class Mnn(Runtime):
    """An ONNX file of the module, converted."""

    name = "mnn"
    extra = "mnn"
    packages = ("MNN", "onnx", "onnxscript")
    precisions = {"fp32": CPU}  # noqa: RUF012
    takes_varying = False
    trial_order = 30

    def open(
        self, exporter: Exporter, precision: str, num_threads: int, calibrated: bytes | None
    ) -> Runner:
        import torch

        from pipeline.inference import output_tree as pytree

        structure = exporter.structure()

        def write(folder: Path, _: FlatOutputs) -> None:
            convert(exporter.onnx(), folder / _FILE)

        infer = open_model(exporter.folder("mnn", write) / _FILE, num_threads)

        def run(batch: Tensors) -> Any:
            fed = [tensor.numpy() for tensor in batch.values()]
            leaves = [torch.from_numpy(array) for array in infer(*fed)]
            return pytree.tree_unflatten(leaves, structure)

        return Runner(run, is_static=True)


def convert(source: Path, target: Path, converter: str = _CONVERT) -> None:
    """Write the MNN model of an ONNX file.

    Raises:
        RuntimeError: MNN cannot convert the model.
    """
    options = ["mnnconvert", "-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(target)]
    done = subprocess.run(  # noqa: S603  # our own interpreter
        [sys.executable, "-P", "-c", _TIED + converter, *options, "--bizCode", "none"],
        capture_output=True,
        check=False,
        text=True,
        timeout=_CONVERT_S,
    )
    if done.returncode or not target.exists():
        output_lines = f"{done.stdout}\n{done.stderr}".strip().splitlines() or ["no output"]
        raise RuntimeError(f"its converter ended with {done.returncode}: {output_lines[-1]}")


def open_model(path: Path, num_threads: int) -> Callable[..., Outputs]:
    """Return a function: arrays of a batch in the exported shapes -> copies of the outputs."""
    from MNN import expr, nn

    types = {np.dtype(np.uint8): expr.uint8, np.dtype(np.float32): expr.float}
    config = {"backend": "CPU", "numThread": num_threads, "precision": "high", "memory": "high"}
    runtime = nn.create_runtime_manager((config,))
    module = nn.load_module_from_file(str(path), [], [], runtime_manager=runtime)

    def run(*batch: npt.NDArray[Any]) -> Outputs:
        held = [expr.const(a, list(a.shape), expr.NCHW, types[a.dtype]) for a in batch]
        return [np.array(expr.convert(out, expr.NCHW).read()) for out in module.forward(held)]

    return run


RUNTIME = Mnn()
