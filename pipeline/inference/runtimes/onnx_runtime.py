"""Runtime `onnxruntime`: float32 on CPU and GPU, int8 on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.inference.runtimes.base import BOTH, CPU, Device, Runner, Runtime
from pipeline.inference.runtimes.int8 import INT8
from pipeline.models.directories.onnx_graph import ONNX_LOG_LEVEL

if TYPE_CHECKING:
    from pipeline.inference.runtimes.export import Exporter
    from pipeline.inference.runtimes.inference_module import Tensors
    from pipeline.models.onnx_module import OnnxModule

_CUDA = "CUDAExecutionProvider"


class OnnxRuntime(Runtime):
    """An ONNX file of the module, or the calibrated one."""

    name = "onnxruntime"
    extra = "onnxruntime"
    packages = ("onnxruntime", "onnx", "onnxscript")
    precisions = {"fp32": BOTH, INT8: CPU}  # noqa: RUF012
    trial_order = 20
    file_precisions = ("fp32",)

    def missing_reason(self, precision: str, device: Device) -> str:
        if device == "cpu" or _CUDA in _providers():
            return ""
        return "this onnxruntime has no CUDA provider: install onnxruntime-gpu"

    def open(
        self, exporter: Exporter, precision: str, num_threads: int, calibrated: bytes | None
    ) -> Runner:
        import torch

        from pipeline.inference import output_tree as pytree

        structure = exporter.structure()
        model = exporter.onnx() if calibrated is None else calibrated
        session = _session(model, num_threads, is_on_gpu=exporter.is_on_gpu)
        names = [each.name for each in session.get_inputs()]

        def run(batch: Tensors) -> Any:
            fed = zip(names, batch.values(), strict=True)
            arrays = session.run(None, {name: tensor.cpu().numpy() for name, tensor in fed})
            return pytree.tree_unflatten([torch.from_numpy(array) for array in arrays], structure)

        return Runner(run, is_static=not exporter.is_varying)

    def open_file(
        self, file: OnnxModule, exporter: Exporter, precision: str, num_threads: int
    ) -> bool:
        session = _session(file.source(), num_threads, is_on_gpu=exporter.is_on_gpu)
        file.open(lambda feeds: session.run(list(file.output_names), feeds))
        return False


def _session(model: Path | str | bytes, num_threads: int, *, is_on_gpu: bool) -> Any:
    """Return a session with all optimisations of the graph, which are the default."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
    options.log_severity_level = ONNX_LOG_LEVEL
    # Threads that spin while they wait would take the cores of the decoders.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model),
        options,
        providers=[*([_CUDA] if is_on_gpu else []), "CPUExecutionProvider"],
    )


def _providers() -> list[str]:
    import onnxruntime

    found: list[str] = onnxruntime.get_available_providers()
    return found


RUNTIME = OnnxRuntime()
