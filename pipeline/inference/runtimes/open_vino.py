"""Runtime `openvino`: float32, bf16 and int8 on the CPU."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.inference.runtimes.int8 import INT8
from pipeline.inference.runtimes.runtime import CPU, Device, Runner, Runtime

if TYPE_CHECKING:
    from pipeline.inference.runtimes.export import Exporter, FlatOutputs
    from pipeline.inference.runtimes.inference_module import Tensors
    from pipeline.models.onnx_module import Feeds, OnnxModule

_DIMS_OF_IMAGES = 4
"""(B, H, W, C)"""
_NO_OPERATORS = re.compile(r"No conversion rule found for operations: ([^\n]*)")
_MAX_CHARS = 200
_HINTS = {"fp32": "f32", "bf16": "bf16", INT8: "f32"}


class OpenVino(Runtime):
    """The module converted by OpenVINO, or the calibrated ONNX file."""

    name = "openvino"
    extra = "openvino"
    packages = ("openvino",)
    precisions = {"fp32": CPU, "bf16": CPU, INT8: CPU}  # noqa: RUF012
    trial_order = 10
    converts_types = True
    file_precisions = ("fp32", "bf16")

    def missing_reason(self, precision: str, device: Device) -> str:
        if precision != "bf16":
            return ""
        if "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            return ""
        return "openvino would run fp32, as this CPU has no bf16"

    def open(
        self, exporter: Exporter, precision: str, num_threads: int, calibrated: bytes | None
    ) -> Runner:
        import openvino
        import torch

        from pipeline.inference import output_tree as pytree

        def convert(folder: Path, flat: FlatOutputs) -> None:
            # Two rows suffice for tracing, and take a tenth of the time of a full batch.
            few = exporter.tensors(2)
            model = openvino.convert_model(flat, example_input=few[0] if len(few) == 1 else few)
            shapes = exporter.shapes()
            is_one = len(shapes) == 1
            model.reshape(shapes[0] if is_one else dict(zip(model.inputs, shapes, strict=True)))
            openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)

        structure = exporter.structure()
        core = _core()
        compiled = core.compile_model(
            exporter.folder("openvino", convert) / "model.xml"
            if calibrated is None
            else core.read_model(calibrated),
            "CPU",
            _options(precision, num_threads),
        )
        request = compiled.create_infer_request()
        count = len(compiled.outputs)
        held: list[tuple[int, torch.Size]] = []

        def run(batch: Tensors) -> Any:
            # Batches mostly use the same memory; setting it again took 2% of a batch of a small
            # network (1,185 us instead of 1,159 for 2,048 rows).
            places = [(tensor.data_ptr(), tensor.shape) for tensor in batch.values()]
            if places != held:
                for index, tensor in enumerate(batch.values()):
                    shared = openvino.Tensor(tensor.numpy(), shared_memory=True)
                    request.set_input_tensor(index, shared)
                held[:] = places
            request.infer(share_outputs=True)
            leaves = [
                torch.from_numpy(request.get_output_tensor(i).data.copy()) for i in range(count)
            ]
            return pytree.tree_unflatten(leaves, structure)

        return Runner(run, is_static=not exporter.is_varying)

    def open_file(
        self, file: OnnxModule, exporter: Exporter, precision: str, num_threads: int
    ) -> bool:
        core = _core()
        try:
            model = core.read_model(file.source())
        except RuntimeError as error:
            if (match := _NO_OPERATORS.search(str(error))) is None:
                raise
            raise JobError(
                f"model.runtime {self.name!r}: lacks operators of {file.path.name}: "
                f"{clean_message(match[1], _MAX_CHARS)}; onnxruntime has them"
            ) from error
        batch = exporter.tensors()[0].shape
        has_varying_sizes = exporter.is_varying and len(batch) == _DIMS_OF_IMAGES
        shapes = None if has_varying_sizes else file.fixed_shapes(batch)
        if shapes is not None:
            model.reshape(shapes)
        compiled = core.compile_model(model, "CPU", _options(precision, num_threads))
        request = compiled.create_infer_request()

        def run(feeds: Feeds) -> list[npt.NDArray[Any]]:
            request.infer(feeds, share_inputs=True, share_outputs=True)
            return [request.get_tensor(name).data.copy() for name in file.output_names]

        file.open(run)
        return shapes is not None and not file.is_fixed


def _options(precision: str, num_threads: int) -> dict[str, Any]:
    return {
        # On a CPU with bf16 the default is bf16.
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "INFERENCE_NUM_THREADS": num_threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }


@functools.cache
def _core() -> Any:
    """Return the one Core of this process, which is never destroyed.

    On CPUs with AMX it gives the thread that makes it a stack for signal handlers, and unmaps the
    stack when it is destroyed. If another thread destroys it, the next signal ends the process.
    """
    import openvino

    return openvino.Core()


RUNTIME = OpenVino()
