"""Runtime `onnxruntime`: float32 on CPU and GPU, int8 on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError
from pipeline.inference.runtimes.base import BOTH, CPU, Runner, Runtime
from pipeline.inference.runtimes.int8 import INT8

if TYPE_CHECKING:
    from pipeline.inference.runtimes.export import Exporter
    from pipeline.inference.runtimes.inference_module import Tensors


class OnnxRuntime(Runtime):
    """An ONNX file of the module, or the calibrated one."""

    name = "onnxruntime"
    extra = "onnxruntime"
    packages = ("onnxruntime", "onnx", "onnxscript")
    precisions = {"fp32": BOTH, INT8: CPU}  # noqa: RUF012
    trial_order = 20

    def open(
        self, exporter: Exporter, precision: str, num_threads: int, calibrated: bytes | None
    ) -> Runner:
        import onnxruntime
        import torch

        from pipeline.inference import output_tree as pytree

        structure = exporter.structure()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
        options.log_severity_level = 3
        # Threads that spin while they wait would take the cores of the decoders.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        wanted = ["CUDAExecutionProvider"] if exporter.is_on_gpu else []
        providers = [p for p in wanted if p in onnxruntime.get_available_providers()]
        if wanted and not providers:
            raise JobError("this onnxruntime has no CUDA provider: install onnxruntime-gpu")
        session = onnxruntime.InferenceSession(
            str(exporter.onnx()) if calibrated is None else calibrated,
            options,
            providers=[*providers, "CPUExecutionProvider"],
        )
        names = [each.name for each in session.get_inputs()]

        def run(batch: Tensors) -> Any:
            fed = zip(names, batch.values(), strict=True)
            arrays = session.run(None, {name: tensor.cpu().numpy() for name, tensor in fed})
            return pytree.tree_unflatten([torch.from_numpy(array) for array in arrays], structure)

        return Runner(run, is_static=not exporter.is_varying)


RUNTIME = OnnxRuntime()
